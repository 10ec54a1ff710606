"""Checkpoints on disk: written atomically, verified when read, and only the newest ones kept."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scalekd.atomic import replacing
from scalekd.errors import UserError, first_line

RUN = "run"  # the part of a checkpoint that is plain values, see `engine.loop`
_UNREADABLE = ".unreadable"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and verified.

    Attributes:
        path: Its file.
        run: The state of the run as plain values (see `Loop`).
        shapes: The shape of each tensor of students and projectors, by name.
    """

    path: Path
    run: dict[str, Any]
    shapes: dict[str, torch.Size]

    def check_fits(self, module: nn.Module) -> None:
        """Check that a module has the same tensors as the checkpoint.

        Raises:
            UserError: If the module differs from the one that was saved; names a tensor.
        """
        built = {name: tensor.shape for name, tensor in module.state_dict().items()}
        differ = sorted(name for name in built | self.shapes if built.get(name) != self.shapes.get(name))
        if differ:
            then, now = (list(shapes[differ[0]]) if differ[0] in shapes else "none" for shapes in (self.shapes, built))
            raise UserError(
                f"resume: the models are built differently than when {self.path} was written: {differ[0]} is {now}, "
                f"was {then}; their code or a package changed (see environment.json): restore it, or start from "
                "scratch with --overwrite"
            )

    def state(self) -> dict[str, Any]:
        """Load the whole checkpoint, including tensors, on the CPU."""
        content: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        return content


class Checkpoints:
    """The checkpoints of a run, in files named `step-00001234.ckpt`.

    The files are in torch's format: zip archives with a checksum (CRC-32) of each entry and the index at the end.

    Args:
        folder: Their folder; created when the first one is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        """Return the path of a step's checkpoint, whether or not it exists."""
        return self.folder / f"step-{step:08}.ckpt"

    @property
    def files(self) -> list[Path]:
        """The existing checkpoint files, oldest first."""
        return sorted(self.folder.glob("step-*.ckpt"), key=lambda path: (len(path.name), path.name))

    def save(self, content: dict[str, Any], path: Path) -> None:
        """Write a checkpoint atomically: it is synced to disk before it gets its final name.

        Raises:
            UserError: If it cannot be written; no partial file remains.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob("*.partial"):  # left by a process that was killed
            left.unlink(missing_ok=True)
        try:
            with replacing(path) as partial, partial.open("wb") as file:
                torch.save(content, file)
        except OSError as error:
            kept = f"the one before it, {self.files[-1].name}, is kept" if self.files else "there is none before it"
            raise UserError(
                f"checkpoint: {path} cannot be written: {error.strerror or error}; {kept}; "
                "fix this, then continue with --resume"
            ) from error

    def prune(self, keep: int) -> None:
        """Delete all but the newest `keep` checkpoints, and all but the newest one set aside as corrupt."""
        aside = sorted(self.folder.glob(f"*{_UNREADABLE}"), key=lambda path: (len(path.name), path.name))
        for old in (*self.files[:-keep], *aside[:-1]):
            old.unlink(missing_ok=True)

    def newest(self, say: Callable[[str], object]) -> Checkpoint | None:
        """Return the newest intact checkpoint, or None if there is no checkpoint. Corrupt ones are set aside (renamed).

        Args:
            say: Called with a line for each corrupt checkpoint.

        Raises:
            UserError: If there are checkpoints and none of them is intact.
        """
        damaged: list[tuple[Path, Exception]] = []
        for path in reversed(self.files):
            try:
                checkpoint = Checkpoint(path, *_read(path))
            except PermissionError as error:  # not corrupt, so it is not set aside
                raise UserError(f"resume: {path} cannot be read: {error.strerror}; make it readable") from None
            except Exception as error:  # a corrupt file may raise any exception
                damaged.append((path, error))
                continue
            for bad, fault in damaged:
                say(f"warning: {bad} cannot be read ({_reason(fault)}); resuming from {path.name}, the one before it")
                os.replace(bad, bad.with_name(bad.name + _UNREADABLE))
            return checkpoint
        if damaged:
            path, fault = damaged[0]
            others = f", nor can the {len(damaged) - 1} before it" if len(damaged) > 1 else ""
            raise UserError(
                f"resume: {path} cannot be read ({_reason(fault)}){others}; start from scratch with --overwrite"
            )
        return None

    def look(self) -> tuple[Path, int, dict[str, Tensor]]:
        """Return the newest checkpoint's file, step and tensors by name; unlike `newest`, it changes no files.

        Raises:
            UserError: If there is no checkpoint, or it cannot be read.
        """
        if not self.files:
            raise UserError(f"checkpoint: there is none in {self.folder} that this revision can read")
        path = self.files[-1]
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            _check_revision(content)
            return path, content[RUN]["step"], content["state_dict"]
        except Exception as error:  # a corrupt file may raise any exception
            raise UserError(f"checkpoint: {path} cannot be read ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    """Return why a checkpoint cannot be read, as part of a line."""
    if isinstance(error, zipfile.BadZipFile):
        return "it is damaged or cut short"
    return first_line(error)


def _check_revision(content: dict[str, Any]) -> None:
    """Check that a checkpoint has the layout of this revision.

    Raises:
        ValueError: If it is of an earlier revision.
    """
    if "optimizers" not in content:
        raise ValueError("it is of an earlier revision of scalekd")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Size]]:
    """Verify all of a checkpoint's checksums and return its `run` and `shapes`; no code in the file is executed."""
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
    if bad is not None:
        raise ValueError(f"the checksum of {bad} does not match")
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if RUN not in content or "state_dict" not in content:
        raise ValueError("it is intact, but of another program")
    _check_revision(content)
    # An earlier revision stored a student's tensors a second time, as `0.method.*` next to `0.model.*`.
    twice = re.compile(r"\d+\.method\.")
    return content[RUN], {k: tensor.shape for k, tensor in content["state_dict"].items() if not twice.match(k)}
