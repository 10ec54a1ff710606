"""The folder of a run, and what it must leave there."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

import scalekd
from scalekd.errors import UserError
from scalekd.recipes import Recipe, dump

_PACKAGES = ("scalekd", "torch", "torchvision", "timm", "pytorch-lightning", "torchmetrics", "numpy", "pillow")
_OURS = ("recipe.yaml", "environment.json", "metrics.jsonl", "result.json", "student.safetensors")
_MACHINE_KEYS = {"workers", "accelerator", "data", "teacher_weights", "student_weights", "log_every"}


class RunFolder:
    """Paths of a run's files.

    Attributes:
        recipe: The resolved recipe, YAML.
        environment: Versions, git revision and hardware, JSON.
        metrics: A JSON object a line.
        checkpoint: Everything needed to go on.
        student: Plain timm weights, rewritten at each validation.
        result: Final figures; there only when the run is finished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoint = path / "checkpoints" / "last.ckpt"
        self.student = path / "student.safetensors"
        self.result = path / "result.json"

    @property
    def finished(self) -> bool:
        """Whether a run has ended here."""
        return self.result.is_file()

    def prepare(self, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
        """Make the folder ready.

        Raises:
            UserError: If it holds a run and neither `resume` nor `overwrite` is set, cannot be written, or is to be
                resumed with other settings.
        """
        if self.recipe.is_file() and not (resume or overwrite):
            state = "a finished run" if self.finished else "an unfinished run"
            raise UserError(
                f"output: {self.path} holds {state}; add --resume to go on with it or --overwrite to start anew"
            )
        if resume:
            self._check_same(recipe)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if overwrite:
                self._clear()
            self.recipe.write_text(dump(recipe), encoding="utf-8")
            write_json(self.environment, describe_environment())
        except OSError as error:
            raise UserError(f"output: {self.path} cannot be written: {error.strerror or error}") from error

    def _clear(self) -> None:
        for name in _OURS:
            (self.path / name).unlink(missing_ok=True)
        for folder in ("checkpoints", "tensorboard"):
            shutil.rmtree(self.path / folder, ignore_errors=True)

    def _check_same(self, recipe: Recipe) -> None:
        stored, wanted = self.stored_keys(), recipe.model_dump(mode="json")
        changed = [key for key in wanted if key not in _MACHINE_KEYS and stored.get(key) != wanted[key]]
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
        if not self.recipe.is_file():
            raise UserError(f"resume: {self.path} holds no run")
        keys: dict[str, Any] = yaml.safe_load(self.recipe.read_text(encoding="utf-8"))
        return keys

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


def describe_environment() -> dict[str, Any]:
    """Versions, revision and hardware that a number depends on."""
    source = Path(scalekd.__file__).parent
    git = subprocess.run(
        ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=40"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "git": git.stdout.strip() or None,
        "platform": platform.platform(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
