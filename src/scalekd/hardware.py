"""Chooses the device and autocast type of a run, and moves batches to the device."""

from __future__ import annotations

import ctypes
import sys
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from scalekd.errors import UserError

T = TypeVar("T")


class Compute(NamedTuple):
    """Where and in which number format a model runs.

    Attributes:
        device: Its device.
        dtype: The autocast type.
    """

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> torch.autocast:
        """The autocast that it runs in."""
        return autocast(self.device, self.dtype)


class ComputeKeys(Protocol):
    """The keys of a recipe that say where and in which number format a model runs."""

    @property
    def accelerator(self) -> str: ...

    @property
    def precision(self) -> str: ...


def pick_compute(recipe: ComputeKeys) -> Compute:
    """Return the device and number format that a recipe specifies; see `pick_device`."""
    device = pick_device(recipe.accelerator)
    return Compute(device, pick_dtype(recipe.precision, device))


def pick_device(accelerator: str) -> torch.device:
    """Return the device for a recipe's `accelerator`; `auto` is the first GPU if there is one, otherwise the CPU.

    Raises:
        UserError: If the requested kind of device does not exist on this machine.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if accelerator == "auto":
        accelerator = next(name for name, is_available in available.items() if is_available)
    if not available[accelerator]:
        raise UserError(f"accelerator: there is no {accelerator} device on this machine; leave it at auto")
    return torch.device(accelerator)


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the autocast type for a recipe's `precision`; `auto` is bf16 if the hardware multiplies matrices in it."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return an autocast context for `dtype`; for float32 autocast is off."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def to_device(batch: T, device: torch.device) -> T:
    """Move all tensors of a batch (in tuples, lists, dictionaries) to a device without waiting for the copy."""
    move = partial(Tensor.to, device=device, non_blocking=True)
    moved: T = tree_map_only(Tensor, move, batch)
    return moved


def keep_freed_memory() -> None:
    """Make glibc's malloc keep freed memory in this process, which reduces a step's page faults to a third.

    Blocks of any size then come from the heap instead of separate mappings, and the heap does not shrink.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_top_pad, 2**28)
