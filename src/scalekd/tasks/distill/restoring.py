"""A method's weights from a run's newest checkpoint, to look at: the run may be going on, so nothing is written."""

from __future__ import annotations

from torch import Tensor

from scalekd.errors import UserError
from scalekd.methods.base import Method
from scalekd.runs.folder import RunFolder
from scalekd.runs.group import RunGroup


def restore_method(method: Method, run: RunFolder) -> int:
    """Give a method, student and projectors, the weights of the run's newest checkpoint.

    Args:
        method: Built by the run's recipe.
        run: A run of its own, or one of a group, whose checkpoint is the group's.

    Returns:
        The optimiser step that they are of.

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
