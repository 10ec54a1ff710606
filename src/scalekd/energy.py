"""The energy that a run takes, from the counters that machines keep of it anyway."""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")  # Linux's RAPL counters, of AMD's processors too
_OFTEN = 10.0  # seconds between readings
_MOST_WATTS = 1000.0  # no package takes more


class _Packages:
    """Joules of all processor packages; None once a part of them is not known.

    Their counters go round: at 400 W in 11 minutes where they hold 262 kJ (Intel's servers), in less than 3 where they
    hold 66 kJ (AMD's). Hence they are to be read often, and a pause that is long enough to go round in loses the count.
    """

    def __init__(self, root: Path) -> None:
        self._joules: float | None = None
        try:
            # Beside them are their own parts (core, dram) and the whole machine (psys).
            found = [path for path in root.glob("intel-rapl:*") if (path / "name").read_text().startswith("package")]
            self._ranges = {path / "energy_uj": int((path / "max_energy_range_uj").read_text()) for path in found}
            self._counts = self._read()
        except (OSError, ValueError):  # for root only, as a rule; absent in containers
            return
        self._at = time.time()
        self._joules = 0.0 if found else None

    def _read(self) -> dict[Path, int]:
        return {file: int(file.read_text()) for file in self._ranges}

    def keep_up(self) -> None:
        """Read the counters if they were not of late."""
        if self._joules is not None and abs(time.time() - self._at) >= _OFTEN:
            self.joules()

    def joules(self) -> float | None:
        """Joules since the beginning."""
        if self._joules is None:
            return None
        before, self._at = self._at, time.time()  # not a monotonic clock: that one stands still in a machine's sleep
        try:
            counts = self._read()
        except (OSError, ValueError):
            self._joules = None
            return None
        if (self._at - before) * _MOST_WATTS * 1e6 >= min(self._ranges.values()):
            self._joules = None
            return None
        for file, count in counts.items():
            gone = count - self._counts[file]
            self._joules += (gone if gone >= 0 else gone + self._ranges[file]) / 1e6
        self._counts = counts
        return self._joules


class _Gpus:
    """Joules of the first `count` CUDA devices, by NVML's counters, which do not go round; None if not known."""

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
            # NVML knows neither CUDA_VISIBLE_DEVICES nor CUDA's order of devices.
            names = [f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in range(count)]
            self._devices = [self._nvml.nvmlDeviceGetHandleByUUID(name) for name in names]
        except self._nvml.NVMLError:  # a part of a GPU (MIG) has no counter of its own
            return
        self._begun = self._read()

    def _read(self) -> float | None:
        try:
            return sum(int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(device)) for device in self._devices) / 1e3
        except self._nvml.NVMLError:  # older than Volta
            return None

    def joules(self) -> float | None:
        """Joules since the beginning."""
        now = None if self._begun is None else self._read()
        return None if now is None or self._begun is None else now - self._begun


class EnergyMeter:
    """Counts the energy of this machine's processors and of its first GPUs, whoever uses them, from now on.

    Args:
        gpus: How many CUDA devices to count, from the first on.
    """

    def __init__(self, gpus: int) -> None:
        self._before: dict[str, float | None] = {"cpu_joules": 0.0, "gpu_joules": 0.0}
        self._packages, self._gpus = _Packages(POWERCAP), _Gpus(gpus)

    def resume(self, before: Mapping[str, float | None] | None) -> None:
        """Add what a run took in earlier starts, as `energy` told it; what was not known then stays unknown."""
        self._before = {name: (before or {}).get(name) for name in self._before}

    def keep_up(self) -> None:
        """To be called a few times a minute, see `_Packages`; costs next to nothing."""
        self._packages.keep_up()

    @property
    def energy(self) -> dict[str, float | None] | None:
        """`cpu_joules` and `gpu_joules` so far, each None if not known or not for the whole run; None if neither is."""
        total: dict[str, float | None] = {}
        for name, now in (("cpu_joules", self._packages.joules()), ("gpu_joules", self._gpus.joules())):
            before = self._before[name]
            total[name] = None if now is None or before is None else round(before + now, 1)
        return total if any(joules is not None for joules in total.values()) else None
