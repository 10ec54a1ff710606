"""Figures go to a tracking service too; it may fail, and a resumed run continues the same one."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
from conftest import TINY_RUN, TINY_SETTINGS, Cli

from scalekd.runs.services import Outcome, ServiceLog

FLAGS = (*TINY_RUN, "--method", "none")


class Recorder:
    """A connection that records what it is sent, and fails from a step on."""

    def __init__(self, fails_at: int = 1000) -> None:
        self.sent: list[int] = []
        self.outcome: Outcome | None = None
        self.fails_at = fails_at

    def send(self, figures: Mapping[str, float], step: int) -> None:
        if step >= self.fails_at:
            raise ConnectionError("the server\nis away")
        self.sent.append(step)

    def end(self, outcome: Outcome) -> None:
        self.outcome = outcome


def test_a_service_that_fails_is_reported_once_and_left_alone() -> None:
    connection, lines = Recorder(fails_at=2), list[str]()
    log = ServiceLog("wandb", connection, lines.append)
    for step in (1, 2, 3):
        log.write({"train/loss": 1.0}, step)
    log.close("finished")
    assert (connection.sent, connection.outcome) == ([1], None)
    assert lines == ["warning: logger: wandb failed and gets no more figures: the server"]


def test_a_service_that_is_not_installed_is_named(
    cli: Cli, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    outcome = cli("distill", "--data", data, "--output", tmp_path / "run", *FLAGS, "--logger", "mlflow")
    outcome.refused("logger: mlflow is not installed; pip install mlflow")
    assert not (tmp_path / "run").exists()


def test_a_service_that_cannot_start_does_not_stop_the_run(
    cli: Cli, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = ModuleType("wandb")
    broken.__spec__ = pytest.__spec__  # it is found
    monkeypatch.setitem(sys.modules, "wandb", broken)
    run = tmp_path / "run"
    outcome = cli("distill", "--data", data, "--output", run, *FLAGS, "--logger", "wandb")
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("warning: logger: wandb cannot start") == 1
    assert (run / "result.json").is_file()
    assert not (run / "service.json").exists()


def test_weights_and_biases_offline(cli: Cli, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = tmp_path / "run"
    outcome = cli("distill", "--data", data, "--output", run, *FLAGS, "--logger", "wandb")
    assert outcome.code == 0, outcome.err
    assert "warning: logger" not in outcome.err
    service = json.loads((run / "service.json").read_text())
    (folder,) = (run / "wandb").glob("offline-run-*")
    assert folder.name.endswith(service["id"])
    written = next(folder.glob("*.wandb")).read_bytes()
    assert b"train/loss" in written
    assert b"val/top1" in written
    (run / "result.json").unlink()
    assert cli("distill", "--resume", "--output", run).code == 0
    assert json.loads((run / "service.json").read_text()) == service, "the same run is continued"
    assert cli("distill", "--data", data, "--output", run, *FLAGS, "--overwrite").code == 0
    assert not (run / "service.json").exists()


def test_each_of_several_students_has_a_run_of_its_own(
    cli: Cli, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    students = ("--student", "test_resnet", "--student", "test_vit")
    outcome = cli(
        *("distill", "--data", data, "--output", tmp_path / "group", *TINY_SETTINGS, *students),
        *("--method", "none", "--epochs", "1", "--logger", "wandb"),
    )
    assert outcome.code == 0, outcome.err
    assert "warning: logger" not in outcome.err
    ids = [json.loads((tmp_path / "group" / name / "service.json").read_text())["id"] for name in students[1::2]]
    assert ids[0] != ids[1]


class Client:
    """MLflow's client, as far as it is used; keeps what it is told."""

    told: ClassVar[list[tuple[Any, ...]]] = []

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        return f"experiment {name}"

    def create_run(self, experiment: str, run_name: str) -> Any:
        self.told.append(("create", experiment, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

    def update_run(self, run: str, status: str) -> None:
        self.told.append(("update", run, status))

    def log_batch(self, run: str, metrics: Any = (), params: Any = ()) -> None:
        type(self).told += [("metric", run, *metric[:2], metric[3]) for metric in metrics]
        type(self).told += [("param", run, *param) for param in params]

    def set_terminated(self, run: str, status: str) -> None:
        self.told.append(("end", run, status))


def test_mlflow_is_told_parameters_figures_and_the_end(
    cli: Cli, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the package, which is too large to install for a test: this checks what it is asked."""
    mlflow, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    mlflow.__spec__ = pytest.__spec__
    mlflow.MlflowClient = Client  # type: ignore[attr-defined]
    entities.Metric = entities.Param = lambda *values: values  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    run = tmp_path / "run"
    assert cli("distill", "--data", data, "--output", run, *FLAGS, "--logger", "mlflow").code == 0
    told = list(Client.told)
    Client.told.clear()
    assert told[0] == ("create", "experiment scalekd", "run")
    assert ("param", "r1", "batch", "6") in told
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    sent = [entry for entry in told if entry[0] == "metric"]
    assert ("metric", "r1", "train/loss", logged[0]["train/loss"], 1) in sent
    assert len(sent) == sum(len(line) - 1 for line in logged)
    assert told[-1] == ("end", "r1", "FINISHED")
    (run / "result.json").unlink()
    assert cli("distill", "--resume", "--output", run).code == 0
    assert Client.told[0] == ("update", "r1", "RUNNING")
