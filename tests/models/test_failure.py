"""Exceptions in a model's own code become one-line errors."""

from __future__ import annotations

import pytest
import torch

from scalekd.errors import UserError
from scalekd.models.failure import ModelError, kind_and_line, naming_model


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("\n  sizes differ\nat line 3"), "RuntimeError: sizes differ"),
        (KeyError("aux"), "KeyError: 'aux'"),
        (AssertionError(), "AssertionError"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
    ],
)
def test_a_models_error_names_model_shape_and_first_line(error: Exception, line: str) -> None:
    with (
        pytest.raises(ModelError, match=r"^student: net cannot be trained on images \[2, 3, 8, 8\]: ") as told,
        naming_model("student", "net", (2, 3, 8, 8), "be trained on"),
    ):
        raise error
    assert str(told.value).endswith(f": {line}")
    assert kind_and_line(error) == line


@pytest.mark.parametrize(
    "error", [UserError("data: none"), MemoryError(), torch.OutOfMemoryError(), KeyboardInterrupt()]
)
def test_what_is_no_fault_of_the_model_stays_as_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as told, naming_model("student", "net", (2, 3, 8, 8)):
        raise error
    assert told.value is error
