"""The folder of a run, and what it must leave there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from scalekd.environment import describe_environment
from scalekd.errors import UserError
from scalekd.models.weights import file_hash
from scalekd.recipes import Keys, Recipe, dump, resolved

_OURS = ("recipe.yaml", "inputs.json", "environment.json", "metrics.jsonl", "result.json", "student.safetensors")
GROUP = "group.json"  # names the students of a group of runs, in the folder that holds theirs
# Keys that may change in a resumed run: where things are, and what does not bear on the result.
_PLACES = {"data", "teacher_weights", "student_weights", "cache"}
_CONDUCT = {"workers", "accelerator", "log_every", "max_corrupt", "check_teacher"}


class RunFolder:
    """Paths of a run's files.

    Attributes:
        recipe: The resolved recipe, YAML.
        inputs: Fingerprints of the data and hashes of the weights that the run reads, JSON.
        environment: Versions, git revision and hardware at the start, JSON.
        metrics: A JSON object a line.
        checkpoint: Everything needed to go on.
        student: Plain timm weights, rewritten at each validation.
        result: Final figures; there only when the run is finished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.inputs = path / "inputs.json"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoint = path / "checkpoints" / "last.ckpt"
        self.student = path / "student.safetensors"
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
            UserError: If the data or the weights are not those that the run was started with; names which.
        """
        if resume:
            stored = self.stored_inputs()
            changed = [name for name in inputs | stored if stored.get(name) != inputs.get(name)]
            if changed:
                then, now = stored.get(changed[0]), inputs.get(changed[0])
                raise UserError(
                    f"resume: {changed[0]} changed since the run in {self.path} was started ({then} then, {now} now); "
                    "restore it, or start anew with --overwrite"
                )
            return
        write_json(self.inputs, inputs)
        write_json(self.environment, describe_environment())
        # Paths are made absolute, so that the run can be read from anywhere. Last: it marks the folder as a run's.
        paths = {key: value.resolve() for key, value in recipe if isinstance(value, Path)}
        self.recipe.write_text(dump(recipe.model_copy(update=paths)), encoding="utf-8")

    def clear(self) -> None:
        """Delete the run that is here."""
        for name in _OURS:
            (self.path / name).unlink(missing_ok=True)
        for folder in ("checkpoints", "tensorboard"):
            shutil.rmtree(self.path / folder, ignore_errors=True)

    def check_same(self, recipe: Keys) -> None:
        """Make sure that the run that is here has these settings, but for those that do not bear on the result.

        Raises:
            UserError: If there is no run or a setting is another; names it.
        """
        stored, wanted = (
            resolved(type(recipe)()) | self.stored_keys(),
            resolved(recipe),
        )  # newer ones: defaults
        changed = [key for key in wanted if key not in _PLACES | _CONDUCT and stored.get(key) != wanted[key]]
        if changed:
            key = changed[0]
            raise UserError(
                f"resume: {key} is {wanted[key]!r} but the run in {self.path} was started with {stored.get(key)!r}; "
                "leave it out, or start anew with --overwrite"
            )

    def stored_keys(self) -> dict[str, Any]:
        """The recipe of the run that is here, as plain keys.

        Raises:
            UserError: If there is none.
        """
        if (self.path / GROUP).is_file():
            raise UserError(f"run: {self.path} holds a group of runs; name the folder of one of them")
        if not self.exists:
            raise UserError(f"run: {self.path} holds no run (no {self.recipe.name})")
        keys = yaml.safe_load(self.recipe.read_text(encoding="utf-8"))
        if not isinstance(keys, dict):
            raise UserError(f"run: {self.recipe} is damaged; start anew with --overwrite")
        return keys

    def stored_inputs(self) -> dict[str, Any]:
        """What the run that is here was started from."""
        inputs: dict[str, Any] = json.loads(self.inputs.read_text(encoding="utf-8"))
        return inputs

    def trim_metrics(self, step: int) -> None:
        """Drop log lines later than `step`, which a resumed run writes again."""
        if self.metrics.is_file():
            lines = self.metrics.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
            self.metrics.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def weight_hashes(recipe: Recipe) -> dict[str, str]:
    """The hashes of the local weights that a recipe names."""
    weights = {
        "teacher": recipe.teacher_weights or (recipe.method != "none" and recipe.teacher),
        "student": recipe.student_weights or recipe.student,
    }
    return {f"{role} weights": file_hash(path) for role, path in weights.items() if path and Path(path).is_file()}
