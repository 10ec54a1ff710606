"""Turn exceptions raised in a model's own code into one-line errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from scalekd.errors import UserError


class ModelError(UserError):
    """A model's own forward or backward failed; names the model, the images' shape and the error's first line."""


def first_line(error: BaseException) -> str:
    """Return an error's type and the first non-empty line of its message: `KeyError: 'aux'`."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[:1]])


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
        raise ModelError(f"{role}: {name} cannot {doing} images {list(shape)}: {first_line(error)}") from error
