"""Read the student's weights from a checkpoint of the authors' framework (mmpretrain, mmcls) without running code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scalekd.errors import UserError, first_line

_STUDENT = "student."
_REFUSED = "Unsupported global"  # start of torch's message about an object that it would have to import


class _Ignored:
    """Placeholder for the framework's own objects in a checkpoint, such as its log; accepts anything, does nothing."""

    def __init__(self, *_arguments: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


# The types in the framework's log in a checkpoint. None of them is imported: each is read as `_Ignored`.
_LOG = tuple(
    (_Ignored, name)
    for name in (
        "mmengine.logging.history_buffer.HistoryBuffer",
        *("builtins.getattr", "__builtin__.getattr", "getattr"),  # used for the buffer's methods
        *(
            f"{numpy}.{name}"
            for numpy in ("numpy.core.multiarray", "numpy._core.multiarray")
            for name in ("_reconstruct", "scalar")
        ),
        "numpy.ndarray",
        "numpy.dtype",
    )
)


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read a `.pth` file; from a distiller's checkpoint, only the student's tensors, without the prefix `student.`.

    Raises:
        UserError: If the file is missing, holds anything other than tensors and plain values, or has no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint: no such file: {path}")
    try:
        with torch.serialization.safe_globals(list(_LOG)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        _, refused, what = str(error).partition(_REFUSED)
        reason = (refused + what.partition("\n")[0] if refused else first_line(error)).split(". ")[0]
        raise UserError(f"checkpoint: {path} cannot be read with weights_only=True: {reason}") from None
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"checkpoint: {path} holds no state dict; pass a .pth file of mmpretrain or mmcls")
    tensors = {
        str(key).removeprefix("module."): value.detach() for key, value in state.items() if isinstance(value, Tensor)
    }
    own = {key.removeprefix(_STUDENT): value for key, value in tensors.items() if key.startswith(_STUDENT)}
    return own or tensors
