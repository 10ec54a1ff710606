"""Book-keeping of the memory of tensors while operations run."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
HEAP_LIMIT = 32 * 2**20  # glibc asks the system for each larger block and gives it back when it is freed


class MemoryTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the storages that operations make, from their birth to the death of their last tensor.

    It works on tensors without memory too.

    Args:
        lays_out_weights: Whether convolutions lay their weights out anew for the time that they take, as oneDNN does on
            the CPU. No dispatcher sees that copy, so it is counted here.

    Attributes:
        live: Bytes that are alive now.
        peak: The most that were ever alive at once.
        small_peak: The same of storages up to `HEAP_LIMIT`, held ones left out.
    """

    def __init__(self, *, lays_out_weights: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._lays_out_weights = lays_out_weights
        self.live = self.peak = self.small_peak = 0
        self._small = 0
        self._known: set[int] = set()

    def hold(self, tensors: Sequence[Tensor]) -> None:
        """Count tensors that are there before the first operation."""
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
    """Bytes that oneDNN lays out anew: a convolution's weights, and in its backward their gradient too."""
    operation = func._overloadpacket
    if operation is aten.convolution:
        weight, copies = args[1], 1
    elif operation is aten.convolution_backward:
        weight, copies = args[2], 2
    else:
        return 0
    size: int = copies * weight.nbytes
    return size
