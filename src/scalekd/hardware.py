"""Which device and which number format a run uses."""

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
    """The device and the number format that a recipe asks for; see `pick_device`."""
    device = pick_device(recipe.accelerator)
    return Compute(device, pick_dtype(recipe.precision, device))


def pick_device(accelerator: str) -> torch.device:
    """The device for a recipe's `accelerator`; `auto` is the first GPU that is there.

    Raises:
        UserError: If one is asked for by name that is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if accelerator == "auto":
        accelerator = next(name for name, is_there in there.items() if is_there)
    if not there[accelerator]:
        raise UserError(f"accelerator: there is no {accelerator} device here; leave it at auto")
    return torch.device(accelerator)


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The autocast type for a recipe's `precision`: `auto` is bf16 where matrix products are faster in it."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Autocast to `dtype`; for float32 it is switched off."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def to_device(batch: T, device: torch.device) -> T:
    """A batch with all its tensors (in tuples, lists, dictionaries) on a device; does not wait for the copy."""
    move = partial(Tensor.to, device=device, non_blocking=True)
    moved: T = tree_map_only(Tensor, move, batch)
    return moved


def keep_freed_memory() -> None:
    """Let glibc's malloc keep what is freed, for this process: a step then has a third of the page faults.

    Blocks of any size come from its heap instead of mappings of their own, and the heap does not shrink.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_top_pad, 2**28)
