"""The folders of students that are trained concurrently; a single run is a group of one in the folder itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

from scalekd.atomic import write_json
from scalekd.errors import Interrupted, UserError
from scalekd.keys import Keys
from scalekd.recipes import Recipe
from scalekd.runs.checkpoints import Checkpoints
from scalekd.runs.folder import GROUP, RunFolder, read_json
from scalekd.runs.lock import locked, missing, remove_unused

_CHECKPOINTS = "checkpoints"  # a folder next to the students' folders


@contextmanager
def naming(student: str) -> Iterator[None]:
    """Prefix errors with the name of the student that they concern; an empty name adds nothing."""
    try:
        yield
    except UserError as error:
        if not student:
            raise
        raise type(error)(f"student {student}: {error}") from error


def folder_names(students: Sequence[str]) -> list[str]:
    """Return a folder name for each student: its own name, with characters replaced that are unsuitable in names.

    Raises:
        UserError: If two students would share a folder, or a name is reserved or empty.
    """
    names = [re.sub(r"[^\w.-]+", "-", student.removesuffix(".safetensors")).strip("-.") for student in students]
    for (one, name), (two, other) in combinations(zip(students, names, strict=True), 2):
        if name.lower() == other.lower():
            what = (
                f"{one!r} is specified twice" if one == two else f"{one!r} and {two!r} would share the folder {name!r}"
            )
            raise UserError(f"student: {what}; specify each student once")
    for student, name in zip(students, names, strict=True):
        if name.lower() in ("", _CHECKPOINTS):
            raise UserError(f"student: {student!r} cannot be used as a folder name; train it by itself")
    return names


class RunGroup:
    """Where students that are trained concurrently leave their files: a run folder each, and one checkpoint.

    Args:
        path: The folder.
        students: Their names as the recipe takes them; empty or one for a single run, whose folder is `path`.

    Attributes:
        names: What each is called, and its folder; one empty name for a single run.
        runs: The run folder of each.
        checkpoints: Everything needed to resume all of them.
    """

    def __init__(self, path: str | Path, students: Sequence[str] = ()) -> None:
        self.path = path = Path(path)
        self.students = list(students) if len(students) > 1 else []
        self.names = folder_names(self.students) or [""]
        self.runs = [RunFolder(path / name) for name in self.names]
        self.checkpoints = Checkpoints(path / _CHECKPOINTS)
        self._prepared = False  # whether this process has started the runs in the folders

    @staticmethod
    def stored_students(path: str | Path) -> list[str]:
        """Return the students of the group in a folder; empty if there is no group.

        Raises:
            UserError: If the file that lists them is corrupt.
        """
        file = Path(path) / GROUP
        if not file.is_file():
            return []
        students = read_json(file).get("students")
        if not isinstance(students, list):
            raise UserError(f"run: {file} is damaged; delete {path} and start from scratch")
        return [str(student) for student in students]

    @property
    def started(self) -> bool:
        """Whether these runs exist; false if their start was interrupted before all their settings were written."""
        there = [run for run in self.runs if run.exists]
        return len(there) == len(self.runs) or any(run.finished or run.metrics.is_file() for run in there)

    def stored_keys(self) -> dict[str, Any]:
        """Return the recipe of the runs in the folder, as plain keys; `student` is that of the first run.

        Raises:
            UserError: If there are no runs, or they are of other students.
        """
        stored = self.stored_students(self.path)
        if self.students and stored != self.students:
            held = f"a group of {', '.join(stored)}" if stored else "no group of runs"
            raise UserError(f"resume: {self.path} holds {held}, not of {', '.join(self.students)}; remove --student")
        return self.runs[0].stored_keys()

    @contextmanager
    def claimed(self, warn: Callable[[str], object], *, resume: bool) -> Iterator[None]:
        """Create the folders, unless the runs are resumed, and lock them against other processes.

        On exit, folders created here are removed again if they hold nothing but the lock. If a new run fails before it
        has logged or saved anything, its files are removed, too.

        Args:
            warn: Called with a line if the file system does not support locks.
            resume: Whether the runs are resumed, so that no folder is created.

        Raises:
            UserError: If a folder is in use by another process, or cannot be written.
        """
        with ExitStack() as stack:
            for folder in sorted({self.path, *(run.path for run in self.runs)}):
                made: list[Path] = []
                try:
                    str(folder).encode()  # TensorBoard's writer requires valid UTF-8
                    if not resume:
                        made = missing(folder)
                        folder.mkdir(parents=True, exist_ok=True)
                except UnicodeEncodeError:
                    raise UserError(f"output: {folder} is not valid UTF-8; choose another folder") from None
                except OSError as error:
                    raise UserError(f"output: {folder} cannot be written: {error.strerror or error}") from error
                if folder.is_dir():
                    stack.enter_context(locked(folder, warn))
                    stack.callback(self._take_back, folder, made)
            try:
                yield
            except Interrupted:
                raise
            except Exception:
                written = self.checkpoints.files or any(run.metrics.exists() for run in self.runs)
                if self._prepared and not resume and not written:
                    self._clear()
                raise

    @staticmethod
    def _take_back(folder: Path, made: Sequence[Path]) -> None:
        """Remove the lock and the folders that were created for it, if there is no run in the folder."""
        if not RunFolder(folder).exists and not (folder / GROUP).exists():
            remove_unused(folder, made)

    def check(self, recipes: Sequence[Keys], *, resume: bool, overwrite: bool) -> None:
        """Check that the runs may be written here, without changing any files.

        Raises:
            UserError: If there are runs and neither `resume` nor `overwrite` is set, or if with `resume` there are no
                runs, finished runs or other runs.
        """
        if resume and overwrite:
            raise UserError("output: --resume and --overwrite exclude each other")
        if resume:
            self._check_resumable(recipes)
            return
        former = RunGroup(self.path, self.stored_students(self.path))
        if former.students and former.started and not overwrite:
            raise UserError(
                f"output: {self.path} holds a group of runs; add --resume to resume it or --overwrite to replace it"
            )
        half = {run.path for run in former.runs if not former.started}
        for run in (RunFolder(self.path), *self.runs):
            if run.exists and not overwrite and run.path not in half:
                kind, option = ("a finished", "") if run.finished else ("an unfinished", "--resume to resume it or ")
                raise UserError(f"output: {run.path} holds {kind} run; add {option}--overwrite to replace it")
            if run.metrics.exists() and not run.exists:
                raise UserError(f"output: {run.metrics} does not belong to a run; move it, or choose another folder")

    def _check_resumable(self, recipes: Sequence[Keys]) -> None:
        self.stored_keys()  # of these students?
        for run, recipe in zip(self.runs, recipes, strict=True):
            run.check_same(recipe, may_be_longer=True)
            group = run.stored_inputs().get("group", [])
            if group and not self.students:
                raise UserError(
                    f"resume: the run in {run.path} is one of a group, which is resumed together; "
                    f"add --resume to --output {run.path.parent}"
                )
        longer = [run.continues(recipe) for run, recipe in zip(self.runs, recipes, strict=True)]
        if any(longer) and not self.checkpoints.files:
            raise UserError(f"resume: {self.path} has no checkpoint from which it could continue")
        if all(run.finished for run in self.runs) and not any(longer):
            what = "runs" if self.students else "run"
            are = "are" if self.students else "is"
            more = "train for more epochs with --epochs, or " if isinstance(recipes[0], Recipe) else ""
            raise UserError(
                f"resume: the {what} in {self.path} {are} finished; {more}start from scratch with --overwrite"
            )

    def prepare(self, recipes: Sequence[Keys], inputs: Sequence[dict[str, Any]], *, resume: bool) -> None:
        """Delete former runs and write the settings of these, or check that resumed runs have the same inputs.

        Raises:
            UserError: If data or weights differ from those that the runs were started with; names which.
        """
        if self.students:
            inputs = [content | {"group": self.students} for content in inputs]
        if not resume:
            self._clear()
            self._prepared = True
            if self.students:
                write_json(self.path / GROUP, {"students": self.students})  # first: it lists the group's folders
        for run, recipe, content in zip(self.runs, recipes, inputs, strict=True):
            run.prepare(recipe, content, resume=resume)

    def _clear(self) -> None:
        former = RunGroup(self.path, self.stored_students(self.path))
        for run in (*former.runs, *self.runs):
            if run.exists:
                run.clear()
        if former.students:
            RunFolder(self.path).clear()  # the group's checkpoints
            (self.path / GROUP).unlink()
