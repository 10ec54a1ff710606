"""Measures the energy that a run uses with the hardware's counters: RAPL for processors, NVML for GPUs."""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")  # Linux's RAPL counters, also for AMD processors
_INTERVAL = 10.0  # seconds between readings
_MOST_WATTS = 1000.0  # upper bound of a processor package's power


class _CpuEnergy:
    """Energy of all processor packages; unknown (None) as soon as a part of it is unknown.

    The counters wrap around: at 400 W after 11 minutes if they hold 262 kJ (Intel servers), after less than 3 minutes
    if they hold 66 kJ (AMD). They must therefore be read often; a pause in which a counter may have wrapped around
    makes the energy unknown.
    """

    def __init__(self, root: Path) -> None:
        self._joules: float | None = None
        try:
            # Other entries are parts of packages (core, dram) and the whole machine (psys).
            found = [path for path in root.glob("intel-rapl:*") if (path / "name").read_text().startswith("package")]
            self._ranges = {path / "energy_uj": int((path / "max_energy_range_uj").read_text()) for path in found}
            self._counts = self._read()
        except (OSError, ValueError):  # usually readable by root only; absent in containers
            return
        self._at = time.time()
        self._joules = 0.0 if found else None

    def _read(self) -> dict[Path, int]:
        return {file: int(file.read_text()) for file in self._ranges}

    def poll(self) -> None:
        """Read the counters if the last reading is too old."""
        if self._joules is not None and abs(time.time() - self._at) >= _INTERVAL:
            self.joules()

    def joules(self) -> float | None:
        """Return the joules since the start; None if unknown."""
        if self._joules is None:
            return None
        before, self._at = self._at, time.time()  # a monotonic clock would stop while the machine sleeps
        try:
            counts = self._read()
        except (OSError, ValueError):
            self._joules = None
            return None
        if (self._at - before) * _MOST_WATTS * 1e6 >= min(self._ranges.values()):
            self._joules = None
            return None
        for file, count in counts.items():
            used = count - self._counts[file]
            self._joules += (used if used >= 0 else used + self._ranges[file]) / 1e6
        self._counts = counts
        return self._joules


class _GpuEnergy:
    """Energy of the first `count` CUDA devices from NVML's counters, which do not wrap around; None if unknown."""

    def __init__(self, count: int) -> None:
        self._begun: float | None = None
        if not count:
            return
        try:
            self._nvml = importlib.import_module("pynvml")
        except ImportError:
            return
        try:
            self._nvml.nvmlInit()
            # NVML ignores CUDA_VISIBLE_DEVICES and CUDA's order of devices, so devices are found by UUID.
            names = [f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in range(count)]
            self._devices = [self._nvml.nvmlDeviceGetHandleByUUID(name) for name in names]
        except self._nvml.NVMLError:  # a part of a GPU (MIG) has no counter
            return
        self._begun = self._read()

    def _read(self) -> float | None:
        try:
            return sum(int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(device)) for device in self._devices) / 1e3
        except self._nvml.NVMLError:  # GPUs older than Volta have no counter
            return None

    def joules(self) -> float | None:
        """Return the joules since the start; None if unknown."""
        now = None if self._begun is None else self._read()
        return None if now is None or self._begun is None else now - self._begun


class EnergyMeter:
    """Measures the energy of this machine's processors and first GPUs from construction on.

    The counters include everything else that runs on the machine.

    Args:
        gpus: Number of CUDA devices to count, starting with the first.
    """

    def __init__(self, gpus: int) -> None:
        self._before: dict[str, float | None] = {"cpu_joules": 0.0, "gpu_joules": 0.0}
        self._cpus, self._gpus = _CpuEnergy(POWERCAP), _GpuEnergy(gpus)

    def resume(self, before: Mapping[str, float | None] | None) -> None:
        """Add the energy that a resumed run used earlier, as returned by `energy`; unknown parts stay unknown."""
        self._before = {name: (before or {}).get(name) for name in self._before}

    def poll(self) -> None:
        """Read the counters if necessary; must be called several times a minute (see `_CpuEnergy`) and is cheap."""
        self._cpus.poll()

    @property
    def energy(self) -> dict[str, float | None] | None:
        """`cpu_joules` and `gpu_joules` so far, each None unless known for the whole run; None if neither is known."""
        total: dict[str, float | None] = {}
        for name, now in (("cpu_joules", self._cpus.joules()), ("gpu_joules", self._gpus.joules())):
            before = self._before[name]
            total[name] = None if now is None or before is None else round(before + now, 1)
        return total if any(joules is not None for joules in total.values()) else None
