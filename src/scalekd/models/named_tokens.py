"""A teacher of any kind, whose final tokens are the output of a module that the user names."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from scalekd.errors import UserError, did_you_mean, first_line
from scalekd.methods.outputs import MapShape, TeacherOutputs
from scalekd.models.maps import as_map


class NamedTokens:
    """Reads tokens from a module's output, and runs the named modules as the tail.

    The tail takes patch tokens only, as that of timm's ViTs.

    Args:
        model: The teacher. It returns logits `[B, K]`, an object with `logits`, or anything else, which is ignored.
        tokens: The module whose output, or its attribute `last_hidden_state`, is the final tokens: `[B, N, D]` of a
            square grid, prefix tokens first, or a map `[B, D, h, w]` or `[B, h, w, D]`. Empty for the model itself.
        tail: Modules that map tokens `[B, N, D]` to tokens, in the order in which they run. On the input that the first
            one has in the model, they must give the output of `tokens`.
        images: Prepared images `[1, 3, side, side]`, to find the shapes with.
        title: The model's name, for messages.

    Raises:
        UserError: If there is no such module, its output is not tokens or not always the same, or the tail does not
            give these tokens.
    """

    note = ""

    def __init__(self, model: nn.Module, tokens: str, tail: Sequence[str], images: Tensor, title: str) -> None:
        self._model, self._title, self._name = model, title, tokens
        self._source = _named(model, tokens, "teacher_tokens", title) if tokens else model
        self._tail = [_named(model, name, "teacher_tail", title) for name in tail]
        # Hugging Face's ViTs take images of another size only if they are told to.
        resamples = "interpolate_pos_encoding" in signature(model.forward).parameters
        self._options: dict[str, Any] = {"interpolate_pos_encoding": True} if resamples else {}
        self.tail_name = ", ".join(tail)
        with torch.no_grad():
            entered: list[Tensor] = []
            hook = self._tail[0].register_forward_pre_hook(lambda _, given: entered.append(given[0])) if tail else None
            found, logits, output = self._run(images)
            if hook is not None:
                hook.remove()
                self._check_tail(entered, output)
            if not torch.equal(output, self._run(images)[2]):
                raise UserError(f"teacher: {title} gives other tokens each time, so they cannot be learned from")
        _, width, rows, columns = found.shape
        self.tokens = self.tail_input = MapShape(width, rows, columns)
        self.num_classes = 0 if logits is None else logits.shape[1]

    def compute(self, images: Tensor) -> TeacherOutputs:
        found, logits, _ = self._run(images)
        return TeacherOutputs(found.flatten(2).transpose(1, 2), logits)  # BxDxhxw -> BxNxD

    def tail(self, tokens: Tensor) -> Tensor:
        for module in self._tail:
            output = module(tokens)
            tokens = output[0] if isinstance(output, tuple) else output
        return tokens

    def tail_modules(self) -> list[nn.Module]:
        return self._tail

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return the tokens as a map `[B, D, h, w]`, the logits if there are any, and the tokens as they come."""
        kept: list[Any] = []
        hook = self._source.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
        try:
            output = self._model(images, **self._options)
        finally:
            hook.remove()
        if not kept:
            raise UserError(f"teacher_tokens: {self._name!r} is not called in the forward of {self._title}")
        found = getattr(kept[-1], "last_hidden_state", kept[-1])
        found = found[0] if isinstance(found, tuple) else found
        try:
            tokens = as_map(found, self._name or "the output", images.shape[-1])
        except UserError:
            what = list(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise UserError(
                f"teacher_tokens: {self._name or 'the output'} of {self._title} gives {what} for images of "
                f"{images.shape[-1]} pixels, not maps [B, D, h, w] or tokens [B, N, D] of a square grid"
            ) from None
        logits = getattr(output, "logits", output)
        return tokens, logits if isinstance(logits, Tensor) and logits.ndim == 2 else None, found

    def _check_tail(self, entered: list[Tensor], expected: Tensor) -> None:
        """Check that the tail turns what its first module gets in the model into the model's tokens."""
        if not entered:
            raise UserError(f"teacher_tail: the first of {self.tail_name} is not called in {self._title}")
        try:
            found = self.tail(entered[-1])
        except Exception as error:  # modules of any library may raise anything
            raise UserError(
                f"teacher_tail: {self.tail_name} cannot run on tokens alone ({first_line(error)}); leave it out"
            ) from error
        if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-3, atol=1e-4):
            raise UserError(
                f"teacher_tail: {self.tail_name} do not end with the tokens of {self._name or self._title}; name all "
                "modules from a block to the last norm, in their order, or leave it out"
            )


def _named(model: nn.Module, name: str, key: str, title: str) -> nn.Module:
    known = dict(model.named_modules())
    found: nn.Module | None = known.get(name)
    if found is None:
        few = ", ".join(child for child, _ in model.named_children())
        raise UserError(f"{key}: {title} has no module {name!r}{did_you_mean(name, known)}; its parts are {few}")
    return found
