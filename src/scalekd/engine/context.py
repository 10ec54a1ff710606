"""The surroundings of a run of any task: folders, processes, signals and console."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from rich.console import Console

from scalekd.engine.launcher import launched
from scalekd.engine.optimisation import quieten_timm
from scalekd.engine.processes import Processes, joined
from scalekd.engine.signals import Stop
from scalekd.errors import UserError
from scalekd.progress import plain_lines
from scalekd.runs.checkpoints import Checkpoint
from scalekd.runs.folder import RunFolder
from scalekd.runs.group import RunGroup


@dataclass(frozen=True)
class RunContext:
    """The surroundings of a run that was started or resumed, as seen by one of its processes.

    Attributes:
        group: The folders of the run.
        processes: The processes that train together.
        stop: Records signals that request a stop.
        console: Prints in the first process only.
        resume: Whether the run is resumed.
    """

    group: RunGroup
    processes: Processes
    stop: Stop
    console: Console
    resume: bool

    @property
    def folder(self) -> RunFolder:
        """The run folder of a run that trains one model."""
        return self.group.runs[0]

    def say(self, text: str) -> None:
        """Print text without markup, in the first process only."""
        plain_lines(self.console)(text)

    def report(self, text: str) -> None:
        """Print text that concerns this process only, such as an unreadable image."""
        plain_lines(self.console if self.processes.first else Console(stderr=True))(text)


@contextmanager
def run_context(group: RunGroup, devices: int, *, resume: bool, console: Console | None) -> Iterator[RunContext]:
    """Join the processes, record signals, and lock the folders until the end.

    Args:
        group: The folders of the run.
        devices: Number of processes in the recipe.
        resume: Whether to resume what is in the folders.
        console: Where to print; standard error by default.

    Raises:
        UserError: If the processes were not started, or the folders are in use or cannot be written.
    """
    quieten_timm()
    if devices > 1 and not launched():
        raise UserError(f"devices: {devices} need as many processes; start them with torchrun")
    with Stop() as stop, joined() as processes, ExitStack() as stack:
        console = (console or Console(stderr=True)) if processes.first else Console(quiet=True)
        context = RunContext(group, processes, stop, console, resume)
        if processes.first:
            stack.enter_context(group.claimed(context.say, resume=resume))
        yield context


def find_checkpoint(context: RunContext, steps: int) -> Checkpoint | None:
    """Find the newest checkpoint of a resumed run, and cut the logs to their length at that time.

    Call it before the learners are created, which name their TensorBoard file after the existing ones.

    Args:
        context: The run's surroundings.
        steps: Steps of the whole run, for the message.

    Raises:
        UserError: If there are checkpoints and none can be read.
    """
    if not context.resume:
        return None
    group, processes = context.group, context.processes
    checkpoint = processes.from_first(lambda: group.checkpoints.newest(context.say))
    if checkpoint is None:
        processes.from_first(lambda: _refuse_earlier_revision(group))
        context.say(f"warning: no checkpoint is in {group.checkpoints.folder}; the run begins from scratch")
    else:
        done = checkpoint.run["step"]
        context.say(f"resume    from {checkpoint.path.name}: step {done} of {steps} is done")
    for index, folder in enumerate(group.runs if processes.first else ()):
        folder.cut_logs({} if checkpoint is None else checkpoint.run["logs"][index])
    return checkpoint


def _refuse_earlier_revision(group: RunGroup) -> None:
    earlier = group.checkpoints.folder / "last.ckpt"
    if earlier.exists():
        raise UserError(f"resume: {earlier} is of an earlier revision, which is not read; start again with --overwrite")
