"""Turn exceptions raised in a model's own code into one-line errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from scalekd.errors import UserError, first_line


class ModelError(UserError):
    """A model's own forward or backward failed; names the model, the images' shape and the error's first line."""


def kind_and_line(error: BaseException) -> str:
    """Return an error's type and the first line of its message: `KeyError: 'aux'`."""
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"


@contextmanager
def naming_model(role: str, name: str, shape: Sequence[int], doing: str = "run on") -> Iterator[None]:
    """Turn every error of a model's own code into a `ModelError`; `UserError` and lack of memory are raised as is.

    Args:
        role: The key that names the model, such as `student`.
        name: The model's name.
        shape: The shape of its input, `[B, 3, h, w]`.
        doing: What it cannot do: `run on`, `be trained on`.

    Raises:
        ModelError: If the body raises anything else.
    """
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"{role}: {name} cannot {doing} images {list(shape)}: {kind_and_line(error)}") from error
