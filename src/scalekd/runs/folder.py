"""The folder of a run: its files, the settings and inputs stored there, and their comparison when it is resumed."""

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
from scalekd.keys import Keys
from scalekd.methods.registry import METHODS
from scalekd.models.weights import file_hash
from scalekd.recipes import ListKeys, Recipe, dump, resolved
from scalekd.recipes.text import read_keys

# The recipe last: if clearing is interrupted, the folder is still recognised as a run's.
_OURS = (
    "inputs.json", "environment.json", "metrics.jsonl", "result.json", "student.safetensors",
    "student.best.safetensors", "segmenter.safetensors", "service.json", "detector.safetensors", "recipe.yaml",
)  # fmt: skip
GROUP = "group.json"  # lists the students of a group of runs, in the folder that holds their run folders
EPOCHS_BEFORE = "epochs_before"  # in environment.json and result.json: the epochs that a continued run had before
ENDED_EARLY = "ended_early"  # in result.json: whether `patience` ended the run
# Keys that may change in a resumed run: locations, and settings that do not affect the result.
_PLACES = {"data", "teacher_weights", "student_weights", "backbone_weights", "cache", *ListKeys.model_fields}
_MODELS = {"teacher", "student", "backbone"}  # a name, or a weights file
_CONDUCT = {
    "workers", "accelerator", "devices", "strategy", "log_every", "max_corrupt", "data_patience", "check_teacher",
    "keep", "keep_best", "patience", "logger", "checkpoint_minutes",
}  # fmt: skip
# Keys whose default values depend on another key.
_FOLLOWS = {"lr": "batch", "min_lr": "batch", "warmup_lr": "batch", "micro_batch": "batch", "warmup_epochs": "epochs"}


class RunFolder:
    """Paths of a run's files.

    Args:
        path: The folder.

    Attributes:
        recipe: The resolved recipe, YAML.
        inputs: Fingerprints of the data and hashes of the weights that the run reads, JSON.
        environment: Versions, git revision and hardware at the start, JSON.
        metrics: Figures as JSON lines.
        tensorboard: Folder of the same figures as TensorBoard events.
        student: Plain timm weights, rewritten at each validation and when the run is stopped.
        service: The run's id at a tracking service, JSON; exists only if the recipe names one.
        best_student: The weights of the best validation, if the recipe keeps them.
        segmenter, detector: Weights of the whole model of a `transfer` run, instead of a student's.
        pictures: Folder of validation images with that model's predictions.
        result: Final figures, JSON; exists only if the run is finished.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path = Path(path)
        self.recipe = path / "recipe.yaml"
        self.inputs = path / "inputs.json"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.student = path / "student.safetensors"
        self.best_student = path / "student.best.safetensors"
        self.service = path / "service.json"
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
        """Whether the run here is finished."""
        return self.result.is_file()

    def prepare(self, recipe: Keys, inputs: dict[str, Any], *, resume: bool) -> None:
        """Write the recipe, inputs and environment of a new run, or check that a resumed run has the same inputs.

        Raises:
            UserError: If the data, the weights or the way images are decoded differ from when the run was started;
                names the difference.
        """
        inputs = {"decoding": DECODING} | inputs
        if resume:
            stored = self.stored_inputs()
            changed = [name for name in inputs | stored if stored.get(name) != inputs.get(name)]
            if "decoding" in changed:
                raise UserError(
                    f"resume: the run in {self.path} was started by a version of scalekd that decodes images "
                    f"differently ({stored.get('decoding', 'as stored, EXIF orientation ignored')} then, {DECODING} "
                    "now); resume it with that version, or start from scratch with --overwrite"
                )
            if changed:
                raise UserError(self._changed(changed[0], stored.get(changed[0]), inputs.get(changed[0])))
            if self.continues(recipe):
                self._continue(recipe)
            return
        write_json(self.inputs, inputs)
        write_json(self.environment, describe_environment())
        self._write_recipe(recipe)

    def _continue(self, recipe: Keys) -> None:
        """Turn the run, finished or not, into an unfinished one of more epochs; its former lengths are recorded."""
        self.result.unlink(missing_ok=True)  # first: if this is interrupted, the run is one to resume
        before = self.epochs_before
        if self.is_longer(recipe) and self._stored_epochs not in before:  # it is after an interruption just here
            content = {EPOCHS_BEFORE: [*before, self._stored_epochs]}
            write_json(self.environment, read_json(self.environment) | content)
        self._write_recipe(recipe)

    def is_longer(self, recipe: Keys) -> bool:
        """Whether a recipe has more epochs than the run in this folder."""
        return isinstance(recipe, Recipe) and recipe.epochs > self._stored_epochs

    def continues(self, recipe: Keys) -> bool:
        """Whether a recipe lets the run in this folder train on: more epochs, or another patience if that ended it."""
        if self.is_longer(recipe) or not self.finished or not isinstance(recipe, Recipe):
            return self.is_longer(recipe)
        ended = bool(self.stored_result().get(ENDED_EARLY))
        return ended and recipe.patience != self.stored_keys().get("patience")

    @property
    def _stored_epochs(self) -> int:
        epochs = self.stored_keys().get("epochs")
        return epochs if isinstance(epochs, int) else 0

    @property
    def epochs_before(self) -> list[int]:
        """The epochs that the run had before it was continued for more, oldest first; usually none."""
        try:
            return list(read_json(self.environment).get(EPOCHS_BEFORE, []))
        except UserError:  # a run must not fail at its end for this
            return []

    def _write_recipe(self, recipe: Keys) -> None:
        # Paths are made absolute, so that the run can be used from any working folder. The recipe is written last,
        # because it marks the folder as a run's.
        paths: dict[str, Any] = {key: value.resolve() for key, value in recipe if isinstance(value, Path)}
        paths |= {key: os.path.abspath(value) for key, value in recipe if key in _MODELS and is_weights(value)}
        data = getattr(recipe, "data", None)
        if isinstance(data, str):
            paths["data"] = absolute(data)
        write_bytes(self.recipe, dump(recipe.model_copy(update=paths)).encode())

    def _changed(self, name: str, then: object, now: object) -> str:
        """Return the error message for an input that differs from the one the run was started with."""
        if then is None:
            return f"resume: the run in {self.path} was started without {name}, now there are some ({now}); remove them"
        if now is None:
            return f"resume: the run in {self.path} was started with {name} ({then}), now there are none; specify them"
        packages = self.changed_packages()
        perhaps = f", perhaps because packages did: {', '.join(packages)}" if packages else ""
        return (
            f"resume: {name} changed since the run in {self.path} was started ({then} then, {now} now){perhaps}; "
            "restore it, or start from scratch with --overwrite"
        )

    def changed_packages(self) -> list[str]:
        """Return the packages whose versions have changed since the run was started, each with both versions."""
        try:
            then = read_json(self.environment).get("packages")
        except UserError:  # used for a hint only
            then = None
        now = describe_environment()["packages"]
        versions = {name: (then.get(name), now[name]) for name in now} if isinstance(then, dict) else {}
        return [f"{name} {old} -> {new}" for name, (old, new) in versions.items() if old != new]

    def clear(self) -> None:
        """Delete the files of the run in this folder."""
        for folder in ("checkpoints", "tensorboard"):
            shutil.rmtree(self.path / folder, ignore_errors=True)
        transfer = self.segmenter.exists() or self.detector.exists()
        for file in (*(self.pictures.glob("*.png") if transfer else ()), *(self.path / name for name in _OURS)):
            file.unlink(missing_ok=True)

    def check_same(self, recipe: Keys, *, may_be_longer: bool = False) -> None:
        """Check that the run in this folder has these settings, except those that do not affect the result.

        Args:
            recipe: The settings.
            may_be_longer: Whether they may have more epochs.

        Raises:
            UserError: If there is no run, or a setting differs; names it, rather than one whose default depends on it.
        """
        defaults = resolved(type(recipe)())  # for keys that are newer than the run
        stored, wanted = defaults | self.stored_keys(), resolved(recipe)
        free = {"micro_batch"} if isinstance(recipe, Recipe) and cut_freely(recipe) else set()
        if isinstance(recipe, Recipe) and stored.get("projector_lr_scale") == recipe.used_projector_lr_scale:
            free = free | {"projector_lr_scale"}  # `auto`, or the number that it stands for
        if may_be_longer and self.is_longer(recipe):
            free = free | {"epochs", "warmup_epochs"}  # the latter is long past, and its default follows the former
        changed = [key for key in wanted if key not in free and _differs(key, stored.get(key), wanted[key])]
        causes = [key for key in changed if _FOLLOWS.get(key) not in changed]
        if causes:
            self._refuse(causes[0], stored.get(causes[0]), wanted[causes[0]])

    def check_given(self, schema: type[Keys], given: Mapping[str, Any], *, may_be_longer: bool = False) -> None:
        """Check that the keys that the user specifies have the values that the run here was started with.

        This comes before a recipe is built from them: other keys depend on them, and building it could fail for a
        combination that the user did not choose.

        Args:
            schema: The kind of recipe.
            given: Keys and values as the user writes them.
            may_be_longer: Whether there may be more epochs.

        Raises:
            UserError: If there is no run, or a key has another value; names it.
        """
        stored = resolved(schema()) | self.stored_keys()
        for key, text in given.items():
            folder = key in _MODELS and os.path.isdir(text)  # stands for the weights in it
            if key not in stored or key == "micro_batch" or folder:  # whether micro_batch matters depends on other keys
                continue
            field = schema.model_fields[key]
            kind: Any = Annotated[field.annotation, field]
            values = TypeAdapter(kind)
            try:
                value = values.dump_python(values.validate_python(text), mode="json")
            except ValidationError:  # building the recipe will report it
                continue
            longer = key == "epochs" and may_be_longer and value > self._stored_epochs
            if not longer and _differs(key, stored[key], value):
                self._refuse(key, stored[key], value)

    def _refuse(self, key: str, stored: object, wanted: object) -> None:
        raise UserError(
            f"resume: {key} is {wanted!r} but the run in {self.path} was started with {stored!r}; "
            f"remove it, or start from scratch with --overwrite"
        )

    def stored_keys(self) -> dict[str, Any]:
        """Return the recipe of the run in this folder, as plain keys.

        Raises:
            UserError: If there is no run, or its recipe is corrupt.
        """
        if (self.path / GROUP).is_file():
            raise UserError(f"run: {self.path} holds a group of runs; specify the folder of one of them")
        if not self.exists:
            raise UserError(f"run: {self.path} holds no run (no {self.recipe.name})")
        return read_keys(self.recipe, f"run: {self.recipe}")

    def stored_inputs(self) -> dict[str, Any]:
        """Return the inputs that the run in this folder was started with."""
        return read_json(self.inputs)

    def stored_result(self) -> dict[str, Any]:
        """Return the result of the finished run in this folder.

        Raises:
            UserError: If it is corrupt.
        """
        result = read_json(self.result)
        if not isinstance(result.get("top1", ""), float | int | None) or not isinstance(result.get("student"), str):
            raise UserError(f"run: {self.result} is damaged; start from scratch with --overwrite")
        return result

    def sync_logs(self) -> dict[str, int]:
        """Sync the logs to disk; returns the sizes of their files in bytes, by path relative to the folder."""
        sizes = {}
        for path in self._logs():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                sizes[path.relative_to(self.path).as_posix()] = os.fstat(file.fileno()).st_size
        return sizes

    def cut_logs(self, sizes: Mapping[str, int]) -> None:
        """Truncate the logs to the given sizes in bytes; logs that are not listed are deleted.

        A resumed run repeats the steps after its checkpoint, so that no line may remain from them, whole or partial.
        """
        for path in self._logs():
            size = sizes.get(path.relative_to(self.path).as_posix(), 0)
            if not size:
                path.unlink()
            elif size < path.stat().st_size:
                os.truncate(path, size)

    def _logs(self) -> list[Path]:
        return [path for path in (self.metrics, *sorted(self.tensorboard.glob("*.scalekd"))) if path.is_file()]


def settings_of(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return those keys of a stored recipe that affect a run's result, apart from the seed."""
    return {key: value for key, value in keys.items() if key not in _PLACES | _CONDUCT | {"seed", "micro_batch"}}


def _differs(key: str, stored: object, wanted: object) -> bool:
    """Whether a key's value has changed and affects the result."""
    if key in _MODELS and is_weights(stored) and is_weights(wanted):
        return False  # weights files are compared by their hashes
    return key not in _PLACES | _CONDUCT and stored != wanted


def is_weights(model: object) -> bool:
    """Whether a model is specified by a weights file."""
    return isinstance(model, str) and model.endswith(".safetensors")


def cut_freely(recipe: Recipe) -> bool:
    """Whether `micro_batch` affects nothing but the models' random draws (dropout).

    It does affect mixup and CutMix, which draw once per micro-batch, and methods that compare its images.
    """
    mixes = recipe.mixup or recipe.cutmix or METHODS[recipe.method].compares
    return isinstance(recipe.batchnorm_over, int) and not mixes


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON file of a run.

    Raises:
        UserError: If it cannot be read or is corrupt.
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
    """Return the hashes of the local weights files that a recipe names."""
    weights = {
        "teacher": recipe.teacher_weights or (recipe.method != "none" and recipe.teacher),
        "student": recipe.student_weights or recipe.student,
    }
    return {f"{role} weights": file_hash(path) for role, path in weights.items() if path and Path(path).is_file()}
