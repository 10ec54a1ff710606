"""The folder of a run, and what it must leave there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from scalekd.atomic import write_bytes, write_json
from scalekd.data import absolute
from scalekd.data.decoding import DECODING
from scalekd.environment import describe_environment
from scalekd.errors import UserError
from scalekd.models.weights import file_hash
from scalekd.recipes import Keys, ListKeys, Recipe, dump, resolved
from scalekd.recipes.text import read_keys

# The recipe last: what is cleared away half is a run's folder still.
_OURS = (
    "inputs.json", "environment.json", "metrics.jsonl", "result.json", "student.safetensors", "segmenter.safetensors",
    "detector.safetensors", "recipe.yaml",
)  # fmt: skip
GROUP = "group.json"  # names the students of a group of runs, in the folder that holds theirs
# Keys that may change in a resumed run: where things are, and what does not bear on the result.
_PLACES = {"data", "teacher_weights", "student_weights", "backbone_weights", "cache", *ListKeys.model_fields}
_MODELS = {"teacher", "student", "backbone"}  # a name, or a weights file
_CONDUCT = {
    "workers", "accelerator", "devices", "strategy", "log_every", "max_corrupt", "data_patience", "check_teacher",
    "keep", "checkpoint_minutes",
}  # fmt: skip
# Keys whose values follow another key's where the user leaves them open.
_FOLLOWS = {"lr": "batch", "min_lr": "batch", "warmup_lr": "batch", "micro_batch": "batch", "warmup_epochs": "epochs"}


class RunFolder:
    """Paths of a run's files.

    Args:
        path: The folder.

    Attributes:
        recipe: The resolved recipe, YAML.
        inputs: Fingerprints of the data and hashes of the weights that the run reads, JSON.
        environment: Versions, git revision and hardware at the start, JSON.
        metrics: A JSON object a line.
        tensorboard: Folder of the same figures as TensorBoard reads them.
        student: Plain timm weights, rewritten at each validation and where the run is stopped.
        segmenter, detector: Weights of the whole model of a run of `transfer`, instead of a student's.
        pictures: Folder of validation images with what that model says of them.
        result: Final figures; there only when the run is finished.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path = Path(path)
        self.recipe = path / "recipe.yaml"
        self.inputs = path / "inputs.json"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.student = path / "student.safetensors"
        self.segmenter = path / "segmenter.safetensors"
        self.detector = path / "detector.safetensors"
        self.pictures = path / "pictures"
        self.result = path / "result.json"

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.recipe.is_file()

    @property
    def finished(self) -> bool:
        """Whether a run has ended here."""
        return self.result.is_file()

    def prepare(self, recipe: Keys, inputs: dict[str, Any], *, resume: bool) -> None:
        """Write what the run starts from; a resumed one must start from the same.

        Raises:
            UserError: If the data or the weights are not those that the run was started with, or pictures were read
                otherwise then; says which.
        """
        inputs = {"decoding": DECODING} | inputs
        if resume:
            stored = self.stored_inputs()
            changed = [name for name in inputs | stored if stored.get(name) != inputs.get(name)]
            if "decoding" in changed:
                raise UserError(
                    f"resume: the run in {self.path} was started by a version of scalekd that reads pictures otherwise "
                    f"({stored.get('decoding', 'as stored, EXIF orientation ignored')} then, {DECODING} now); resume "
                    "it with that version, or start from scratch with --overwrite"
                )
            if changed:
                raise UserError(self._changed(changed[0], stored.get(changed[0]), inputs.get(changed[0])))
            return
        write_json(self.inputs, inputs)
        write_json(self.environment, describe_environment())
        # Paths are made absolute, so that the run can be read from anywhere. Last: it marks the folder as a run's.
        paths: dict[str, Any] = {key: value.resolve() for key, value in recipe if isinstance(value, Path)}
        paths |= {key: os.path.abspath(value) for key, value in recipe if key in _MODELS and is_weights(value)}
        data = getattr(recipe, "data", None)
        if isinstance(data, str):
            paths["data"] = absolute(data)
        write_bytes(self.recipe, dump(recipe.model_copy(update=paths)).encode())

    def _changed(self, name: str, then: object, now: object) -> str:
        """What to say of an input that is not the one the run was started with."""
        if then is None:
            return (
                f"resume: the run in {self.path} was started without {name}, now there are some ({now}); leave them out"
            )
        if now is None:
            return f"resume: the run in {self.path} was started with {name} ({then}), now there are none; give them"
        packages = self.changed_packages()
        perhaps = f", perhaps because packages did: {', '.join(packages)}" if packages else ""
        return (
            f"resume: {name} changed since the run in {self.path} was started ({then} then, {now} now){perhaps}; "
            "restore it, or start from scratch with --overwrite"
        )

    def changed_packages(self) -> list[str]:
        """The packages whose versions are not those that the run here was started with, with both versions."""
        try:
            then = read_json(self.environment).get("packages")
        except UserError:  # nothing but a hint depends on it
            then = None
        now = describe_environment()["packages"]
        versions = {name: (then.get(name), now[name]) for name in now} if isinstance(then, dict) else {}
        return [f"{name} {old} -> {new}" for name, (old, new) in versions.items() if old != new]

    def clear(self) -> None:
        """Delete the run that is here."""
        for folder in ("checkpoints", "tensorboard"):
            shutil.rmtree(self.path / folder, ignore_errors=True)
        transfer = self.segmenter.exists() or self.detector.exists()
        for file in (*(self.pictures.glob("*.png") if transfer else ()), *(self.path / name for name in _OURS)):
            file.unlink(missing_ok=True)

    def check_same(self, recipe: Keys) -> None:
        """Make sure that the run that is here has these settings, but for those that do not bear on the result.

        Raises:
            UserError: If there is no run or a setting is another; names it, and not one that only follows from it.
        """
        defaults = resolved(type(recipe)())  # of keys that are newer than the run
        stored, wanted = defaults | self.stored_keys(), resolved(recipe)
        free = {"micro_batch"} if isinstance(recipe, Recipe) and cut_freely(recipe) else set()
        changed = [key for key in wanted if key not in free and _differs(key, stored.get(key), wanted[key])]
        causes = [key for key in changed if _FOLLOWS.get(key) not in changed]
        if causes:
            self._refuse(causes[0], stored.get(causes[0]), wanted[causes[0]])

    def check_given(self, schema: type[Keys], given: Mapping[str, Any]) -> None:
        """Make sure that keys which the user gives are those that the run here was started with.

        It comes before a recipe is made of them, where other keys follow from these and may not go together with them.

        Args:
            schema: The kind of recipe.
            given: Keys and values as the user writes them.

        Raises:
            UserError: If there is no run or a key is another; names it.
        """
        stored = resolved(schema()) | self.stored_keys()
        for key, text in given.items():
            folder = key in _MODELS and os.path.isdir(text)  # stands for weights in it
            if key not in stored or key == "micro_batch" or folder:  # whether the second matters depends on others
                continue
            field = schema.model_fields[key]
            kind: Any = Annotated[field.annotation, field]
            values = TypeAdapter(kind)
            try:
                value = values.dump_python(values.validate_python(text), mode="json")
            except ValidationError:  # the recipe will say what is wrong with it
                continue
            if _differs(key, stored[key], value):
                self._refuse(key, stored[key], value)

    def _refuse(self, key: str, stored: object, wanted: object) -> None:
        raise UserError(
            f"resume: {key} is {wanted!r} but the run in {self.path} was started with {stored!r}; "
            "leave it out, or start from scratch with --overwrite"
        )

    def stored_keys(self) -> dict[str, Any]:
        """The recipe of the run that is here, as plain keys.

        Raises:
            UserError: If there is none, or it is damaged.
        """
        if (self.path / GROUP).is_file():
            raise UserError(f"run: {self.path} holds a group of runs; name the folder of one of them")
        if not self.exists:
            raise UserError(f"run: {self.path} holds no run (no {self.recipe.name})")
        return read_keys(self.recipe, f"run: {self.recipe}")

    def stored_inputs(self) -> dict[str, Any]:
        """What the run that is here was started from."""
        return read_json(self.inputs)

    def stored_result(self) -> dict[str, Any]:
        """The result of the run that has ended here.

        Raises:
            UserError: If it is damaged.
        """
        result = read_json(self.result)
        if not isinstance(result.get("top1", ""), float | int | None) or not isinstance(result.get("student"), str):
            raise UserError(f"run: {self.result} is damaged; start from scratch with --overwrite")
        return result

    def sync_logs(self) -> dict[str, int]:
        """Bring the logs to the disk; their files' sizes in bytes, by their paths in the folder."""
        sizes = {}
        for path in self._logs():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                sizes[path.relative_to(self.path).as_posix()] = os.fstat(file.fileno()).st_size
        return sizes

    def cut_logs(self, sizes: Mapping[str, int]) -> None:
        """Put the logs back to what they were when they had these sizes, which none of them had if it is not named.

        A resumed run then writes again what it does again, and no line is there twice or torn.
        """
        for path in self._logs():
            size = sizes.get(path.relative_to(self.path).as_posix(), 0)
            if not size:
                path.unlink()
            elif size < path.stat().st_size:
                os.truncate(path, size)

    def _logs(self) -> list[Path]:
        return [path for path in (self.metrics, *sorted(self.tensorboard.glob("*.scalekd"))) if path.is_file()]


def _differs(key: str, stored: object, wanted: object) -> bool:
    """Whether a key's value bears on the result and is another one."""
    if key in _MODELS and is_weights(stored) and is_weights(wanted):
        return False  # known by their hashes
    return key not in _PLACES | _CONDUCT and stored != wanted


def is_weights(model: object) -> bool:
    """Whether a model is named by its weights file."""
    return isinstance(model, str) and model.endswith(".safetensors")


def cut_freely(recipe: Recipe) -> bool:
    """Whether nothing but random draws of the models (dropout) depends on `micro_batch`.

    Mixup and CutMix draw for the images at once, and dist relates them to each other.
    """
    return isinstance(recipe.batchnorm_over, int) and not recipe.mixup and not recipe.cutmix and recipe.method != "dist"


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON file that a run has left.

    Raises:
        UserError: If it cannot be read or is damaged.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"run: {path} cannot be read: {error.strerror}; start from scratch with --overwrite") from None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"run: {path} is damaged; start from scratch with --overwrite")
    return content


def weight_hashes(recipe: Recipe) -> dict[str, str]:
    """The hashes of the local weights that a recipe names."""
    weights = {
        "teacher": recipe.teacher_weights or (recipe.method != "none" and recipe.teacher),
        "student": recipe.student_weights or recipe.student,
    }
    return {f"{role} weights": file_hash(path) for role, path in weights.items() if path and Path(path).is_file()}
