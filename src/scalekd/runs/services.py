"""Sends the figures of a run to a tracking service as well: Weights & Biases or MLflow."""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from scalekd.atomic import write_json
from scalekd.errors import UserError, first_line
from scalekd.runs.folder import RunFolder, read_json
from scalekd.runs.logs import MetricsLog

PROJECT = "scalekd"  # unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME is set
_LONGEST = 250  # characters of a parameter's value; MLflow's servers refuse longer ones
Outcome = Literal["finished", "stopped", "failed"]


class Connection(Protocol):
    """An open run of a service."""

    def send(self, figures: Mapping[str, float], step: int) -> None:
        """Send the figures of an optimiser step."""

    def end(self, outcome: Outcome) -> None:
        """Close the run."""


class ServiceLog(MetricsLog):
    """Sends figures to a service. If it fails, a line says so once, and the run goes on without it.

    Args:
        name: The service's name in messages.
        connection: Its open run; None if it could not be opened.
        report: Called with the line.
    """

    def __init__(self, name: str, connection: Connection | None, report: Callable[[str], object]) -> None:
        self._name, self._connection, self._report = name, connection, report

    def write(self, figures: Mapping[str, float], step: int) -> None:
        self._try(lambda connection: connection.send(figures, step))

    def close(self, outcome: Outcome) -> None:
        """Close the service's run."""
        self._try(lambda connection: connection.end(outcome))

    def _try(self, call: Callable[[Connection], object]) -> None:
        if self._connection is None:
            return
        try:
            call(self._connection)
        except Exception as error:  # a service must never end a training run
            self._connection = None
            self._report(f"warning: logger: {self._name} failed and gets no more figures: {first_line(error)}")


def check_installed(name: str) -> None:
    """Check that a service's package can be imported.

    Args:
        name: `none`, `wandb` or `mlflow`.

    Raises:
        UserError: If it is not installed.
    """
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UserError(f"logger: {name} is not installed; pip install {name}")


def open_service(
    name: str, folder: RunFolder, keys: Mapping[str, Any], report: Callable[[str], object]
) -> ServiceLog | None:
    """Open a run of a service; a resumed run continues the same one. Its id is kept in the run folder.

    Args:
        name: `none`, `wandb` or `mlflow`.
        folder: The run folder.
        keys: The recipe's keys, which the service shows.
        report: Called with a line if the service fails, now or later.

    Returns:
        The log; None for `none`.
    """
    if name == "none":
        return None
    stored = read_json(folder.service) if folder.service.is_file() else {}
    known = stored.get("id") if stored.get("logger") == name else None
    connection: Connection | None = None
    try:
        connection, run_id = {"wandb": _open_wandb, "mlflow": _open_mlflow}[name](folder, keys, known)
        write_json(folder.service, {"logger": name, "id": run_id})
    except Exception as error:  # for example not logged in, or a server that does not answer
        report(f"warning: logger: {name} cannot start, and this run is logged in its folder only: {first_line(error)}")
    return ServiceLog(name, connection, report)


class _Wandb:
    def __init__(self, run: Any) -> None:
        self._run = run

    def send(self, figures: Mapping[str, float], step: int) -> None:
        # The step is sent as a figure, because W&B drops steps that a resumed run repeats.
        self._run.log({**figures, "step": step})

    def end(self, outcome: Outcome) -> None:
        self._run.finish(exit_code=1 if outcome == "failed" else 0)


def _open_wandb(folder: RunFolder, keys: Mapping[str, Any], known: str | None) -> tuple[Connection, str]:
    wandb = importlib.import_module("wandb")
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=folder.path.name,
        dir=str(folder.path),
        id=known or uuid.uuid4().hex[:8],
        resume="allow",
        reinit="create_new",  # runs of several students, and of the caller, stay apart
        config=dict(keys),
    )
    run.define_metric("*", step_metric="step")
    return _Wandb(run), str(run.id)


class _MLflow:
    def __init__(self, client: Any, entities: Any, run_id: str) -> None:
        self._client, self._entities, self._id = client, entities, run_id

    def send(self, figures: Mapping[str, float], step: int) -> None:
        now = round(1000 * time.time())
        metrics = [self._entities.Metric(name, value, now, step) for name, value in figures.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def end(self, outcome: Outcome) -> None:
        self._client.set_terminated(
            self._id, {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[outcome]
        )


def _open_mlflow(folder: RunFolder, keys: Mapping[str, Any], known: str | None) -> tuple[Connection, str]:
    # A server that does not answer then costs seconds; MLflow's own default is minutes, and training waits for it.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    mlflow = importlib.import_module("mlflow")
    entities = importlib.import_module("mlflow.entities")
    client = mlflow.MlflowClient()  # at MLFLOW_TRACKING_URI
    if known is not None:
        client.update_run(known, status="RUNNING")
        return _MLflow(client, entities, known), known
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    experiment = client.get_experiment_by_name(name)
    experiment_id = client.create_experiment(name) if experiment is None else experiment.experiment_id
    run_id = client.create_run(experiment_id, run_name=folder.path.name).info.run_id
    params = [entities.Param(key, str(value)[:_LONGEST]) for key, value in keys.items()]
    client.log_batch(run_id, params=params)
    return _MLflow(client, entities, run_id), run_id
