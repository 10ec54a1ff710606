"""Describes the current machine as a device to plan for."""

from __future__ import annotations

import time

import torch

from scalekd.hardware import pick_device
from scalekd.planner.hours import DEVICES, Device
from scalekd.planner.memory import available_memory

_SIDE = 1024  # side of the square matrices that are multiplied
_SECONDS = 0.5  # time spent measuring


def this_machine(dtype: torch.dtype) -> Device:
    """Return the device that a run on this machine would use (first GPU or CPU) with its currently free memory.

    For bf16 on a GPU listed in `DEVICES`, the rate is the data sheet's. Otherwise the rate of a matrix product is
    measured, which takes half a second.

    Args:
        dtype: Type of the products, bf16 or float32.
    """
    device = pick_device("auto")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"this machine's {device.type.upper()}"
    known = [sheet for key, sheet in DEVICES.items() if key in name.lower().replace(" ", "")]
    listed = bool(known) and dtype == torch.bfloat16
    rate = known[0].peak_flops if listed else _product_rate(device, dtype)
    number = known[0].number_format if listed else str(dtype).removeprefix("torch.").replace("bfloat16", "bf16")
    kind = "cuda" if device.type == "cuda" else "cpu"
    return Device(name, rate, available_memory(device), number, kind)


def _product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the FLOP/s of the fastest of several products of square matrices."""
    matrix = torch.rand(_SIDE, _SIDE, device=device, dtype=dtype)
    times: list[float] = []
    while sum(times) < _SECONDS or len(times) < 2:
        begin = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # waits for a GPU
        times.append(time.perf_counter() - begin)
    return float(2 * _SIDE**3 / min(times))
