from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_VIT, Cli
from downstream_data import SIDE, write_coco
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from scalekd.errors import UserError
from scalekd.hardware import pick_compute
from scalekd.models import Classifier
from scalekd.recipes import load_as, transfer_names
from scalekd.runs.logs import JsonLines
from scalekd.tasks.detection import Detection
from scalekd.tasks.detection.detector import load_detector
from scalekd.tasks.detection.model import build_detector
from scalekd.tasks.detection.run import try_detector
from scalekd.tasks.transfer.backbone import Backbone

TINY: dict[str, Any] = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
SETTINGS = (
    *("--backbone", "resnet18", "--no-backbone-pretrained", "--backbone-args", str(TINY).replace("'", "")),
    *("--sizes", "64", "--max-size", "96", "--width", "16", "--hidden", "32", "--proposals", "32"),
    *("--batch", "2", "--epochs", "2", "--warmup-steps", "0", "--optimizer", "adamw", "--lr", "0.003"),
    *("--workers", "0", "--log-every", "1", "--precision", "float32", "--pictures", "2", "--empty-images"),
)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco")


def lines(run: Path) -> list[dict[str, Any]]:
    """Read the log without the values that depend on the clock."""
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in logged if "images_per_second" not in line]


def test_a_run_leaves_a_detector_its_figures_and_pictures(cli: Cli, coco: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = cli("transfer", "detection", "--data", coco, "--output", run, *SETTINGS, "--ema", "0.5")
    assert outcome.code == 0, outcome.err
    assert "box AP" in outcome.out
    assert "3 objects" in outcome.err
    result = json.loads((run / "result.json").read_text())
    assert set(result["boxes"]["per_class"]) == set(result["masks"]["per_class"]) == {"dark", "bright"}
    assert result["images"] == 2
    losses = [line["train/loss"] for line in lines(run) if "train/loss" in line]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert [line["step"] for line in lines(run) if "val/box_AP" in line] == [2, 4]
    with Image.open(run / "pictures" / "000-0.png") as drawn:
        assert drawn.size == (2 * SIDE, SIDE)

    measured = cli("transfer", "detection", "--output", run, "--evaluate", "--json")
    assert measured.code == 0, measured.err
    assert json.loads(measured.out)["boxes"] == result["boxes"]
    detector, classes = load_detector(run)
    assert classes == ("dark", "bright")
    with torch.no_grad():
        (found,) = detector([torch.rand(3, SIDE, SIDE)])
    assert found["masks"].shape[1:] == (1, SIDE, SIDE)
    means = [v for name, v in load_file(run / "detector.safetensors").items() if name.endswith("running_mean")]
    assert means
    assert not any(mean.any() for mean in means)  # frozen: those of a new model

    cli("transfer", "detection", "--data", coco, "--output", run, *SETTINGS).refused("output", "--overwrite")
    cli("transfer", "detection", "--output", run, "--resume").refused("resume", "finished")


def test_boxes_alone_train_a_box_detector_of_the_same_recipe(cli: Cli, coco: Path, tmp_path: Path) -> None:
    for file in (coco / "annotations").iterdir():
        content = json.loads(file.read_text())
        for annotation in content["annotations"]:
            annotation["segmentation"] = []
        file.write_text(json.dumps(content))
    run = tmp_path / "run"
    outcome = cli("transfer", "detection", "--data", coco, "--output", run, *SETTINGS, "--validate-every", "1")
    assert outcome.code == 0, outcome.err
    assert "Faster R-CNN" in outcome.err
    assert "mask AP" not in outcome.err + outcome.out
    result = json.loads((run / "result.json").read_text())
    assert "masks" not in result
    assert result["data"]["training"] == {
        "images": 4,
        "annotations": 3,
        "remarks": {"objects without a mask: only their boxes are learned": 3},
    }
    assert not any("mask" in name for line in lines(run) for name in line)
    assert len(list((run / "pictures").iterdir())) == 2
    measured = cli("transfer", "detection", "--output", run, "--evaluate", "--json")
    assert measured.code == 0, measured.err
    assert json.loads(measured.out)["boxes"] == result["boxes"]
    detector, _ = load_detector(run)
    with torch.no_grad():
        (found,) = detector([torch.rand(3, SIDE, SIDE)])
    assert set(found) == {"boxes", "labels", "scores"}


def test_a_resumed_run_ends_with_the_weights_of_the_uninterrupted_one(
    cli: Cli, coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything random (sizes, flips, sampled boxes) is determined by seed and batch."""
    settings = ("--data", coco, *SETTINGS, "--sizes", "48,64", "--micro-batch", "1", "--pictures", "0")
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    assert cli("transfer", "detection", *settings, "--output", whole).code == 0
    honest = JsonLines.write

    def stop_at_3(self: JsonLines, figures: Mapping[str, float], step: int) -> None:
        honest(self, figures, step)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(JsonLines, "write", stop_at_3)
    stopped = cli("transfer", "detection", *settings, "--output", parted)
    assert stopped.code == 143
    assert "stopped at step 3" in stopped.err
    monkeypatch.setattr(JsonLines, "write", honest)
    cli("transfer", "detection", "--output", parted, "--resume", "--lr", "0.1").refused("resume", "lr")
    assert cli("transfer", "detection", "--output", parted, "--resume").code == 0
    results = [json.loads((run / "result.json").read_text()) for run in (whole, parted)]
    assert results[0]["sha256"] == results[1]["sha256"]
    assert lines(whole) == lines(parted)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vit_tiny_patch16_224", TINY_VIT | {"class_token": False, "global_pool": "avg", "fc_norm": False}),
        ("mixer_b14_224", {"img_size": 64, "patch_size": 16, "num_blocks": 2, "embed_dim": 16}),
    ],
)
def test_a_detector_is_read_again_whatever_its_backbone_and_wherever_that_is(
    cli: Cli, coco: Path, tmp_path: Path, name: str, args: dict[str, Any]
) -> None:
    Classifier(name, pretrained=False, num_classes=3, **args).save(tmp_path / "student.safetensors")
    settings = (*SETTINGS, "--epochs", "1", "--pictures", "0", "--backbone-args", "{}", "--backbone-pretrained")
    named = ("--backbone", tmp_path / "student.safetensors")
    outcome = cli("transfer", "detection", "--data", coco, "--output", tmp_path / "run", *settings, *named)
    assert outcome.code == 0, outcome.err
    (tmp_path / "student.safetensors").unlink()
    state = load_file(tmp_path / "run" / "detector.safetensors")
    detector, _ = load_detector(tmp_path / "run")
    assert all(torch.equal(tensor, state[key]) for key, tensor in detector.state_dict().items())


def test_unreadable_images_are_left_out_of_the_figures_and_are_not_all_there_is(
    cli: Cli, coco: Path, tmp_path: Path
) -> None:
    (coco / "val2017" / "1.png").write_bytes(b"")
    outcome = cli("transfer", "detection", "--data", coco, "--output", tmp_path / "run", *SETTINGS)
    assert outcome.code == 0, outcome.err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["images"] == 1
    for image in (coco / "train2017").iterdir():
        image.write_bytes(b"")
    cli("transfer", "detection", "--data", coco, "--output", tmp_path / "none", *SETTINGS).refused("no image", "read")


def small(**changes: Any) -> Detection:
    return Detection(sizes=(64,), max_size=96, width=16, hidden=32, proposals=16, batch=2, **changes)


def tiny_detector(**changes: Any) -> Any:
    torch.manual_seed(0)
    backbone = Backbone("resnet18", pretrained=False, **TINY)
    return build_detector(small(**changes), backbone, 2)


def test_an_image_without_objects_has_a_finite_loss() -> None:
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, SIDE, SIDE, dtype=torch.uint8),
    }
    losses = tiny_detector().train()([torch.rand(3, SIDE, SIDE)], [empty])
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    assert float(losses["loss_objectness"].detach()) > 0


def test_boxes_are_computed_in_float32_under_autocast() -> None:
    """bf16 has 8 bits: a coordinate of 1,000 pixels would be off by 4."""
    detector = tiny_detector().eval()
    detector.roi_heads.score_thresh = 0.0
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = detector([torch.rand(3, SIDE, SIDE)])
    assert len(found["boxes"])
    assert found["boxes"].dtype == found["scores"].dtype == found["masks"].dtype == torch.float32


@pytest.mark.parametrize("frozen", [True, False])
def test_norms_keep_their_statistics_and_the_stem_its_weights_where_they_are_frozen(frozen: bool) -> None:
    detector = tiny_detector(frozen_norm=frozen, frozen_stem=frozen).train()
    model = detector.backbone.backbone.model
    assert all(module.training != frozen for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    learns = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert learns["conv1.weight"] == learns["layer1.0.conv1.weight"] == (not frozen)
    assert learns["layer2.0.conv1.weight"]
    assert learns["layer4.0.bn2.weight"]


@pytest.mark.parametrize("name", [name for name in transfer_names() if name.startswith("detection/")])
def test_each_shipped_recipe_is_valid(name: str) -> None:
    recipe = load_as(Detection, name, {})
    assert recipe.epochs >= max(recipe.milestones)


def test_the_recipes_are_those_asked_for() -> None:
    resnet, swin = (load_as(Detection, f"detection/maskrcnn-{name}", {}) for name in ("resnet50", "swin_tiny"))
    for recipe in (resnet, swin):
        assert (recipe.epochs, recipe.milestones, recipe.batch, recipe.sizes) == (12, (8, 11), 16, (800,))
    assert (resnet.optimizer, resnet.lr, resnet.weight_decay) == ("sgd", 0.02, 1e-4)
    assert (swin.optimizer, swin.lr, swin.weight_decay) == ("adamw", 1e-4, 0.05)


def test_wrong_input_ends_in_one_line(cli: Cli, coco: Path, tmp_path: Path) -> None:
    def call(*flags: str | Path) -> Any:
        return cli("transfer", "detection", "--output", tmp_path / "run", *flags)

    call("--data", coco).refused("backbone", "--backbone")
    call("--backbone", "resnet18").refused("data", "--data")
    call("--data", tmp_path, *SETTINGS).refused("instances_train2017.json", "annotations")
    call("--data", coco, *SETTINGS, "--batch", "8").refused("batch", "8", "4")
    call("--data", coco, *SETTINGS, "--warmup-steps", "9").refused("warmup_steps", "9", "4 steps")
    call("--data", coco, *SETTINGS, "--max-size", "32").refused("max_size", "32", "64")
    vit = ("--backbone", "vit_tiny_patch16_224", "--backbone-args", "{}")
    call("--data", coco, *SETTINGS, *vit, "--frozen-stem").refused("frozen_stem", "stride 4")
    file = coco / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["categories"].append({"id": 9, "name": "third"})
    content["annotations"][0]["category_id"] = 9
    file.write_text(json.dumps(content))
    call("--data", coco, *SETTINGS).refused("instances_val2017.json", "other categories", "'third' (1 objects)")
    call("--data", coco, *SETTINGS, "--val-split", "train2017").refused("val_split", "4 of its 4 images")
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_a_part_that_fails_when_trained_is_named_and_refused_before_the_run(
    cli: Cli, coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image of 32 pixels has one value per channel at stride 32, on which batch norm cannot be trained."""
    flags = ("--batch", "1", "--sizes", "32", "--max-size", "32", "--no-frozen-norm")
    outcome = cli("transfer", "detection", "--data", coco, "--output", tmp_path / "run", *SETTINGS, *flags)
    outcome.refused("backbone: resnet18 cannot be trained on images [1, 3, 32, 32]", "more than 1 value per channel")
    assert not (tmp_path / "run" / "recipe.yaml").exists()
    detector, recipe = tiny_detector(), small()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    state = torch.get_rng_state()
    try_detector(detector, recipe, pick_compute(recipe))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())

    def fail(*_: object) -> None:
        raise KeyError("auxiliary")

    because = r"resnet18 cannot be trained on images \[2, 3, 64, 64\]: KeyError: 'auxiliary'"
    parts = {
        Backbone: ("_read", "backbone: "),
        type(detector.rpn): ("forward", "detection: Mask R-CNN on "),
        type(detector.roi_heads.mask_head): ("forward", "detection: Mask R-CNN on "),
    }
    for part, (method, named) in parts.items():
        with monkeypatch.context() as patch:
            patch.setattr(part, method, fail)
            with pytest.raises(UserError, match=f"^{named}{because}"):
                try_detector(detector, recipe, pick_compute(recipe))


@pytest.mark.parametrize(
    ("task", "package"),
    [
        ("detection", "faster_coco_eval"),
        ("segmentation", "segmentation_models_pytorch.base"),
        ("segmentation", "segmentation_models_pytorch.decoders.upernet.decoder"),
    ],
)
def test_a_missing_extra_is_named_in_one_line(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, package: str
) -> None:
    ours = f"scalekd.tasks.{task}"
    for name in [name for name in sys.modules if name.startswith(f"{ours}.")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("run", "evaluation", "model", "task"):
        monkeypatch.delattr(importlib.import_module(ours), name, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    outcome = cli("transfer", task, "--backbone", "resnet18", "--data", tmp_path, "--output", tmp_path / "run")
    outcome.refused(task, "pip install '.[downstream]'")
