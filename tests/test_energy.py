"""Energy by fake counters: a powercap folder whose files the tests write, and an NVML of their own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TINY_RUN, Cli, newest_checkpoint

from scalekd import energy
from scalekd.energy import EnergyMeter
from scalekd.report import measure_figures, read_runs, render_page
from scalekd.runs.checkpoints import RUN
from scalekd.tasks.distill.task import DistillationTask

RANGE = 262_143_328_850


class Powercap:
    """Linux's folder of energy counters: two packages, with what else lies beside them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        names = {"0": "package-0", "0:0": "core", "1": "package-1", "1:0": "dram", "2": "psys"}
        for number, name in names.items():
            folder = root / f"intel-rapl:{number}"
            folder.mkdir(parents=True)
            (folder / "name").write_text(f"{name}\n")
            (folder / "max_energy_range_uj").write_text(f"{RANGE}\n")
            (folder / "energy_uj").write_text("7\n")
        (root / "intel-rapl-mmio:0").mkdir()
        (root / "intel-rapl").mkdir()

    def counter(self, package: int) -> Path:
        return self.root / f"intel-rapl:{package}" / "energy_uj"

    def spend(self, joules: float, package: int = 0) -> None:
        for file in (self.counter(package), self.root / "intel-rapl:2" / "energy_uj"):
            file.write_text(f"{(int(file.read_text()) + round(joules * 1e6)) % RANGE}\n")


class Clock:
    """The machine's time, set by hand."""

    now = 1e9

    def time(self) -> float:
        return self.now


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Powercap:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "powercap")
    return Powercap(tmp_path / "powercap")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(energy, "time", clock)
    return clock


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Millijoules by GPU as NVML numbers them; CUDA numbers them the other way round and sees two of the three."""

    class NVMLError(Exception):
        pass

    counters = {"GPU-a": 1000, "GPU-b": 2000, "GPU-c": 3000}

    def handle(name: str) -> str:
        if name not in counters:
            raise NVMLError
        return name

    def total(name: str) -> int:
        if counters[name] < 0:
            raise NVMLError
        return counters[name]

    module: Any = ModuleType("pynvml")
    module.NVMLError, module.nvmlInit = NVMLError, lambda: None
    module.nvmlDeviceGetHandleByUUID, module.nvmlDeviceGetTotalEnergyConsumption = handle, total
    monkeypatch.setitem(sys.modules, "pynvml", module)
    devices = [SimpleNamespace(uuid=name) for name in ("c", "b", "part")]
    monkeypatch.setattr(torch.cuda, "get_device_properties", devices.__getitem__)
    return counters


def test_packages_are_added_up_without_their_parts(powercap: Powercap) -> None:
    meter = EnergyMeter(0)
    powercap.spend(30)
    powercap.spend(12.5, package=1)
    assert meter.energy == {"cpu_joules": 42.5, "gpu_joules": None}


def test_counters_that_go_round_are_followed(powercap: Powercap, clock: Clock) -> None:
    powercap.spend(262_000)
    meter = EnergyMeter(0)
    for _ in range(4):  # more than a round in all
        powercap.spend(100_000)
        clock.now += 250
        meter.poll()
    assert meter.energy == {"cpu_joules": pytest.approx(400_000, abs=1), "gpu_joules": None}


def test_counters_are_read_every_ten_seconds_at_most(powercap: Powercap, clock: Clock) -> None:
    meter = EnergyMeter(0)
    powercap.counter(0).write_text("not read\n")
    clock.now += 9
    meter.poll()
    powercap.counter(0).write_text("7\n")
    powercap.spend(1)
    assert meter.energy == {"cpu_joules": 1, "gpu_joules": None}


def test_a_pause_in_which_a_round_could_be_missed_loses_the_count(powercap: Powercap, clock: Clock) -> None:
    meter = EnergyMeter(0)
    clock.now += 263  # at 1 kW
    meter.poll()
    clock.now += 1
    assert meter.energy is None


@pytest.mark.parametrize("moment", ["before", "while"])
@pytest.mark.parametrize("content", [None, "", "-"])
def test_a_package_that_cannot_be_read_makes_all_unknown(powercap: Powercap, moment: str, content: str | None) -> None:
    """Root reads files of any mode, hence a folder in the file's place."""
    meter = EnergyMeter(0)
    file = powercap.counter(1)
    file.unlink()
    if content is None:
        file.mkdir()
    else:
        file.write_text(content)
    assert (EnergyMeter(0) if moment == "before" else meter).energy is None


def test_without_counters_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "none")
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as if it were not installed
    meter = EnergyMeter(1)
    meter.poll()
    assert meter.energy is None
    (tmp_path / "none" / "intel-rapl:0").mkdir(parents=True)  # as containers show it
    assert EnergyMeter(0).energy is None


def test_gpus_are_those_of_cuda(powercap: Powercap, nvml: dict[str, int]) -> None:
    one, two, three = EnergyMeter(1), EnergyMeter(2), EnergyMeter(3)
    nvml.update({"GPU-a": 900_000, "GPU-b": 22_000, "GPU-c": 13_000})
    powercap.spend(5)
    assert one.energy == {"cpu_joules": 5, "gpu_joules": 10}
    assert two.energy == {"cpu_joules": 5, "gpu_joules": 30}
    assert three.energy == {"cpu_joules": 5, "gpu_joules": None}, "the third is a part of a GPU"
    nvml["GPU-b"] = -1
    assert two.energy == {"cpu_joules": 5, "gpu_joules": None}
    assert EnergyMeter(2).energy == {"cpu_joules": 0, "gpu_joules": None}


def test_what_was_not_known_in_a_former_start_stays_unknown(powercap: Powercap, nvml: dict[str, int]) -> None:
    meter = EnergyMeter(1)
    powercap.spend(5)
    meter.resume({"cpu_joules": 100.0, "gpu_joules": None})
    assert meter.energy == {"cpu_joules": 105, "gpu_joules": None}
    meter.resume(None)
    assert meter.energy is None


def spending(monkeypatch: pytest.MonkeyPatch, powercap: Powercap, joules: float) -> None:
    """Let each training step take so much."""
    honest = DistillationTask.prepare

    def step(self: DistillationTask, *args: Any) -> Any:
        powercap.spend(joules)
        return honest(self, *args)

    monkeypatch.setattr(DistillationTask, "prepare", step)


def told(run: Path) -> Any:
    return json.loads((run / "result.json").read_text())["energy"]


def page(run: Path) -> str:
    (record,) = read_runs([run])
    return render_page([record], [measure_figures(record, 0)])


def test_a_run_tells_its_energy_and_a_resumed_one_adds_up(
    cli: Cli, data: Path, tmp_path: Path, powercap: Powercap
) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        spending(patch, powercap, 3000)
        outcome = cli("distill", "--method", "none", "--data", data, "--output", run, *TINY_RUN)
    assert outcome.code == 0, outcome.err
    assert told(run) == {"cpu_joules": 12_000, "gpu_joules": None}
    said = "12 kJ (3.33 Wh): CPU 12 kJ; counts all that the processors of the machine did in that time"
    assert said in page(run)

    (run / "result.json").unlink()
    newest_checkpoint(run).unlink()  # goes on from step 2 of 4
    assert "reported when the run is finished" in page(run)
    with pytest.MonkeyPatch.context() as patch:
        spending(patch, powercap, 100)
        outcome = cli("distill", "--resume", "--output", run)
    assert outcome.code == 0, outcome.err
    assert told(run) == {"cpu_joules": 6_200, "gpu_joules": None}


def test_a_run_begun_by_an_earlier_revision_does_not_tell_a_part(
    cli: Cli, data: Path, tmp_path: Path, powercap: Powercap
) -> None:
    run = tmp_path / "run"
    outcome = cli("distill", "--method", "none", "--data", data, "--output", run, *TINY_RUN)
    assert outcome.code == 0, outcome.err
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({key: value for key, value in result.items() if key != "energy"}))
    assert "not recorded: the run was finished by an earlier revision" in page(run)

    (run / "result.json").unlink()
    newest_checkpoint(run).unlink()
    checkpoint = torch.load(newest_checkpoint(run), weights_only=True)
    del checkpoint[RUN]["energy"]
    torch.save(checkpoint, newest_checkpoint(run))
    outcome = cli("distill", "--resume", "--output", run)
    assert outcome.code == 0, outcome.err
    assert told(run) is None
    assert "not known: the machine reported none" in page(run)


def test_the_page_names_what_is_missing_and_whose_machine_it_is(
    cli: Cli, data: Path, tmp_path: Path, powercap: Powercap
) -> None:
    run = tmp_path / "run"
    outcome = cli("distill", "--method", "none", "--data", data, "--output", run, *TINY_RUN)
    assert outcome.code == 0, outcome.err
    result = json.loads((run / "result.json").read_text())
    for told_of, said in (
        (
            {"cpu_joules": 4e5, "gpu_joules": 3.2e6},
            "3.6 MJ (1 kWh): CPU 400 kJ, GPU 3.2 MJ; counts all that the processors and GPUs of",
        ),
        (
            {"cpu_joules": None, "gpu_joules": 360.0},
            "360 J (0.1 Wh): GPU 360 J, CPU not known; counts all that the GPUs of",
        ),
    ):
        more = {"energy": told_of, "device": "cuda", "processes": 2}
        (run / "result.json").write_text(json.dumps(result | more))
        assert said + " the first process&#39;s machine did" in page(run)
