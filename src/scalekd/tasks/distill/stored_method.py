"""Reads a method's weights from a run's newest checkpoint. It writes nothing, because the run may still be training."""

from __future__ import annotations

from torch import Tensor

from scalekd.errors import UserError
from scalekd.methods.base import Method
from scalekd.runs.folder import RunFolder
from scalekd.runs.group import RunGroup


def restore_method(method: Method, run: RunFolder) -> int:
    """Load the weights of student and projectors from a run's newest checkpoint.

    Args:
        method: Built by the run's recipe; its weights are replaced.
        run: The run. If it belongs to a run group, the group's checkpoint is read.

    Returns:
        The checkpoint's step.

    Raises:
        UserError: If there is no checkpoint, it cannot be read, or it is of another method.
    """
    students = run.stored_inputs().get("group") or []
    index = students.index(run.stored_keys()["student"]) if students else 0
    group = RunGroup(run.path.parent if students else run.path, students)
    path, step, state = group.checkpoints.look()
    prefix = f"{index}.model."
    own: dict[str, Tensor] = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    try:
        method.load_state_dict(own)
    except RuntimeError as error:
        raise UserError(f"checkpoint: {path} does not fit the run's recipe: {str(error).splitlines()[-1]}") from None
    return step
