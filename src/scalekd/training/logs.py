"""Metrics as JSON lines, and the lines of Lightning that ours stand for."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only


class JsonLinesLogger(Logger):
    """Appends one JSON object a call, with the optimiser step as `step`, to a file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The recipe is a file of its own."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        line = {"step": step} | metrics
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def quieten_lightning() -> None:
    """Leave to our own lines what Lightning would say."""
    for name in ("pytorch_lightning", "timm.scheduler"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*in eval mode.*",
        ".*dataloader is not resumable.*",
        ".*lr_scheduler.step.*",
        ".*logging interval.*",
        ".*LeafSpec.*",
        ".*Checkpoint directory.*",
        ".*no `val_dataloader`.*",
        ".*broadcast_buffers.*",
    ):
        warnings.filterwarnings("ignore", message)
