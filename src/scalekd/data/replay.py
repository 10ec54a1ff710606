"""Randomness that can be replayed: a pure function of what it is keyed by."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*keys: int) -> int:
    """A 64-bit seed from any integers, well mixed."""
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0])


@contextmanager
def seeded(*keys: int) -> Iterator[None]:
    """Seed python, numpy and torch from `keys`; put their states back afterwards, but for the GPU's."""
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    seed = derive_seed(*keys)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed % 2**63)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # only in the process that trains, and there every batch seeds anew
        torch.cuda.manual_seed(seed % 2**63)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
