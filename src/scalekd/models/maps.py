"""Read two feature maps and the logits from a single forward of any student."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import isqrt
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scalekd.errors import UserError, did_you_mean
from scalekd.methods.outputs import StudentOutputs

# The most leading tokens that are taken for class and register tokens.
_MOST_PREFIX_TOKENS = 16


class Reader(Protocol):
    """Computes both maps `[B, C, h, w]` and the logits of prepared images `[B, 3, h, w]` in one forward."""

    def __call__(self, images: Tensor) -> StudentOutputs: ...


class IntermediatesReader:
    """Reads maps by index with timm's `forward_intermediates`."""

    def __init__(self, model: Any, indices: Sequence[int]) -> None:
        self._model, self._indices = model, list(indices)

    def __call__(self, images: Tensor) -> StudentOutputs:
        final, (previous, last) = self._model.forward_intermediates(images, indices=self._indices)
        return StudentOutputs(previous=previous, last=last, logits=self._model.forward_head(final))


class ModuleReader:
    """Reads maps as the outputs of named submodules, with hooks that exist only during the forward.

    Args:
        model: Any module that maps images to logits `[B, K]`, or to an object with an attribute `logits`.
        names: Submodules of (S_prev, S_last). Their outputs are maps `[B, C, h, w]` or `[B, h, w, C]` (distinguished by
            which axes are equal, because images are square), or tokens `[B, N, C]` of a square grid, class tokens
            first.
        title: The model's name, for messages.

    Raises:
        UserError: If there is no such submodule.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], title: str) -> None:
        known = dict(model.named_modules())
        for name in names:
            if name not in known or not name:
                few = ", ".join(child for child, _ in model.named_children())
                raise UserError(
                    f"student_maps: {title} has no module {name!r}{did_you_mean(name, known)}; its parts are {few}"
                )
        self._model, self._names, self._title = model, list(names), title
        self._modules = [known[name] for name in names]

    def __call__(self, images: Tensor) -> StudentOutputs:
        found: dict[str, Any] = {}

        def keep(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
            found[name] = output

        hooks = [
            module.register_forward_hook(partial(keep, name))
            for name, module in zip(self._names, self._modules, strict=True)
        ]
        try:
            output = self._model(images)
        finally:
            for hook in hooks:
                hook.remove()
        logits = getattr(output, "logits", output)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            mode = " in training mode" if self._model.training else ""
            raise UserError(f"student: {self._title}{mode} must give logits [B, K], not {shape}")
        missing = [name for name in self._names if name not in found]
        if missing:
            raise UserError(f"student_maps: {missing[0]!r} is not called in the forward of {self._title}")
        previous, last = (as_map(found[name], f"{name!r} of {self._title}", images.shape[-1]) for name in self._names)
        return StudentOutputs(previous=previous, last=last, logits=logits)


def as_map(output: Any, title: str, resolution: int) -> Tensor:
    """Convert a submodule's output to a map `[B, C, h, w]`; see `ModuleReader` for the supported kinds.

    Args:
        output: The submodule's output.
        title: The submodule's name, for messages.
        resolution: Side of the images in pixels; must be a multiple of the side of a grid of tokens.

    Raises:
        UserError: If it is neither a map nor the tokens of a square grid.
    """
    if isinstance(output, Tensor) and output.ndim == 4:
        _, first, second, third = output.shape
        return output.permute(0, 3, 1, 2) if first == second != third else output
    if isinstance(output, Tensor) and output.ndim == 3:
        side = isqrt(output.shape[1])
        prefix = output.shape[1] - side**2
        if side > 1 and resolution % side == 0 and prefix <= _MOST_PREFIX_TOKENS:
            tokens = output[:, prefix:].transpose(1, 2)
            return tokens.reshape(*tokens.shape[:2], side, side)  # BxNxC -> BxCxhxw
    shape = list(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
    raise UserError(
        f"student_maps: {title} gives {shape}: it must give maps [B, C, h, w] or tokens [B, N, C] of a square grid"
    )


def candidates(model: nn.Module, images: Tensor) -> list[str]:
    """Return submodules whose outputs can be used as maps, found in a forward of prepared images.

    Only the last submodule of each shape is listed, and submodules at most three levels deep. If all have the same
    shape, as in isotropic models, the last few are listed.
    """
    found: dict[str, str] = {}

    def keep(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        try:
            _, channels, height, width = as_map(output, name, images.shape[-1]).shape
        except UserError:
            return
        if height > 1:
            found.pop(name, None)
            found[name] = f"{height}x{width}x{channels}"

    hooks = [
        module.register_forward_hook(partial(keep, name))
        for name, module in model.named_modules()
        if name and name.count(".") < 3
    ]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    last = {shape: name for name, shape in found.items()}
    chosen = [(name, shape) for shape, name in last.items()] if len(last) > 1 else list(found.items())[-8:]
    return [f"{name} ({shape})" for name, shape in chosen]
