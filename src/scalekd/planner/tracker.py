"""Tracks the memory of tensors while operations run."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
HEAP_LIMIT = 32 * 2**20  # glibc maps larger blocks separately and returns them to the system when they are freed


class MemoryTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tracks the storages that operations create until their last tensor is freed.

    Works on tensors without memory too.

    Args:
        lays_out_weights: Whether convolutions copy their weights into another layout while they run, as oneDNN does on
            the CPU. The dispatcher does not see that copy, so it is added here.

    Attributes:
        live: Bytes alive now.
        peak: Largest number of bytes alive at once.
        small_peak: Largest number of bytes alive at once in storages of at most `HEAP_LIMIT`, without held tensors.
    """

    def __init__(self, *, lays_out_weights: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._lays_out_weights = lays_out_weights
        self.live = self.peak = self.small_peak = 0
        self._small = 0
        self._known: set[int] = set()

    def hold(self, tensors: Sequence[Tensor]) -> None:
        """Count tensors that exist before the first operation."""
        for tensor in tensors:
            self._add(tensor, small=False)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._add(value, small=value.untyped_storage().nbytes() <= HEAP_LIMIT)
        self.peak = max(self.peak, self.live + (_layout_copies(func, args) if self._lays_out_weights else 0))
        self.small_peak = max(self.small_peak, self._small)
        return out

    def _add(self, tensor: Tensor, *, small: bool) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes(), small)
        self.live += storage.nbytes()
        self._small += storage.nbytes() * small

    def _drop(self, key: int, size: int, small: bool) -> None:
        self._known.discard(key)
        self.live -= size
        self._small -= size * small


def _layout_copies(func: Any, args: tuple[Any, ...]) -> int:
    """Return the bytes that oneDNN copies into another layout: a convolution's weights, in its backward twice.

    The second copy in the backward is that of the weights' gradient.
    """
    operation = func._overloadpacket
    if operation is aten.convolution:
        weight, copies = args[1], 1
    elif operation is aten.convolution_backward:
        weight, copies = args[2], 2
    else:
        return 0
    size: int = copies * weight.nbytes
    return size
