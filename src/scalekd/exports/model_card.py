"""Write the README of a timm folder: a model card made from a run's files. The licence is left to the user."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from scalekd.errors import printable
from scalekd.models import Classifier
from scalekd.models.paper_models import NAMES
from scalekd.recipes import ListKeys

# Keys left out of the card: locations on the run's machine, and how it was run there.
_PLACES = {"data", "teacher_weights", "student_weights", "cache", "workers", "accelerator", *ListKeys.model_fields}
_PLACES.remove("multi_label")


def model_card(classifier: Classifier, digest: str, run: Mapping[str, Any] | None) -> str:
    """Return a model card in Markdown, with the hub's front matter.

    Args:
        classifier: The model.
        digest: SHA-256 of its weights.
        run: `recipe`, `result`, `inputs` and `environment` from a run folder; None for weights from elsewhere.
    """
    parts = [_FRONT, f"# {_plain(classifier.name)}", _facts(classifier, digest), _usage(classifier)]
    if run is not None:
        parts += [_training(run), _figures(run), _recipe(run["recipe"])]
    return "\n\n".join(parts) + "\n"


_FRONT = """---
tags:
- image-classification
- timm
- scalekd
pipeline_tag: image-classification
library_name: timm
---
<!-- license: choose one and name it above; the data and the teacher may bind you. -->"""


def _facts(classifier: Classifier, digest: str) -> str:
    parameters = sum(p.numel() for p in classifier.model.parameters()) / 1e6
    return _table({
        "architecture": classifier.name,
        "parameters": f"{parameters:.2f} M",
        "classes": classifier.num_classes,
        "labels": "several per image: a sigmoid for each class" if classifier.multi_label else "one per image: softmax",
        "images": f"{classifier.resolution} px, RGB",
        "evaluation crop": f"short side to {round(classifier.resolution / classifier.crop_fraction)}, centre cut",
        "weights SHA-256": digest,
    })  # fmt: skip


def _usage(classifier: Classifier) -> str:
    ours = "import scalekd\n\nscalekd.register_models()  # timm has no such name\n" if classifier.name in NAMES else ""
    return f"""```python
import timm
{ours}
model = timm.create_model("local-dir:FOLDER", pretrained=True)  # or hf-hub:USER/NAME
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```"""


def _training(run: Mapping[str, Any]) -> str:
    recipe, inputs, environment = run["recipe"], run["inputs"], run["environment"]
    has_teacher = recipe["method"] != "none"
    packages = environment.get("packages", {})
    license_ = run["result"].get("teacher_license") or "not known"
    facts = {
        "method": f"{recipe['method']} ([ScaleKD](https://arxiv.org/abs/2411.06786))" if has_teacher else "labels only",
        "teacher": _name(recipe["teacher"]) if has_teacher else None,
        "licence of the teacher's weights": license_ if has_teacher else None,
        "epochs, batch": f"{recipe['epochs']}, {recipe['batch']}",
        "seed": recipe["seed"],
        **{key: value for key, value in inputs.items() if has_teacher or not key.startswith("teacher")},
        "software": ", ".join(
            f"{name} {packages[name]}" for name in ("scalekd", "torch", "timm") if packages.get(name)
        ),
        "revision": environment.get("git"),
    }
    return "## Training\n\n" + _table(facts)


def _figures(run: Mapping[str, Any]) -> str:
    result = run["result"]
    names = {
        "top1": "top-1 (%)",
        "top5": "top-5 (%)",
        "map": "mAP (%)",
        "f1": "mean F1 (%)",
        "teacher_top1": "teacher's top-1 (%)",
        "teacher_map": "teacher's mAP (%)",
        "samples": "images seen",
    }
    rounded = {
        title: f"{result[key]:.2f}" if isinstance(result[key], float) else result[key]
        for key, title in names.items()
        if result.get(key) is not None
    }
    return "## Measured on the run's validation images\n\n" + _table(rounded)


def _recipe(recipe: Mapping[str, Any]) -> str:
    shown = {key: value for key, value in recipe.items() if key not in _PLACES}
    shown |= {key: _name(shown[key]) for key in ("teacher", "student") if shown.get(key)}
    return f"## Recipe\n\n```yaml\n{yaml.safe_dump(shown, sort_keys=False).rstrip()}\n```"


def _name(model: str) -> str:
    """Return a model's name; for a weights file, the file's name without its folder."""
    return Path(model).name if model.endswith(".safetensors") else model


def _table(facts: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {_plain(key)} | {_plain(value)} |" for key, value in facts.items() if value is not None)
    return f"| | |\n|---|---|\n{rows}"


def _plain(value: object) -> str:
    """Escape text so that it cannot break out of a table or the page."""
    return printable(str(value)).replace("|", r"\|").replace("<", "&lt;")
