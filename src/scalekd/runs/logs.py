"""Write the figures of a run to files, JSON lines and TensorBoard events, and read the losses back."""

from __future__ import annotations

import io
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL.Image import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import make_histogram

from scalekd.errors import UserError

_BINS = 60
_RGB = 3  # summary.proto


class MetricsLog(ABC):
    """Where the figures of a run are written."""

    @abstractmethod
    def write(self, figures: Mapping[str, float], step: int) -> None:
        """Write the figures of an optimiser step.

        Raises:
            UserError: If a file cannot be written.
        """


class FileLog(MetricsLog):
    """A log that is written before a call returns, not later by a thread, so that a checkpoint can record its size.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def _append(self, content: bytes) -> None:
        try:
            self._path.parent.mkdir(exist_ok=True)
            with self._path.open("ab") as file:
                file.write(content)
        except OSError as error:
            raise UserError(f"log: {self._path} cannot be written: {error.strerror or error}") from error


class JsonLines(FileLog):
    """Writes one JSON object per call, with the optimiser step as `step`."""

    def write(self, figures: Mapping[str, float], step: int) -> None:
        self._append(json.dumps({"step": step, **figures}).encode() + b"\n")


def logged_losses(metrics: Path) -> list[float]:
    """Read the losses in a run's log, oldest first."""
    losses = []
    for line in metrics.read_bytes().splitlines() if metrics.is_file() else ():
        with suppress(ValueError, TypeError, RecursionError, KeyError):  # a corrupt line, or one without a loss
            losses.append(float(json.loads(line)["train/loss"]))
    return losses


class TensorBoardEvents(FileLog):
    """Writes TensorBoard events, to a separate file for each start of the run.

    Args:
        folder: The run's TensorBoard folder, which may hold files of earlier starts.
    """

    def __init__(self, folder: Path) -> None:
        # TensorBoard reads files in the order of their names, which are therefore numbered instead of time-stamped.
        super().__init__(folder / f"events.out.tfevents.{len(list(folder.glob('*'))):06}.scalekd")

    def write(self, figures: Mapping[str, float], step: int) -> None:
        self.log([Summary.Value(tag=name, simple_value=value) for name, value in figures.items()], step)

    def log(self, values: list[Any], step: int) -> None:
        """Write values in TensorBoard's format (`Summary.Value`)."""
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        events = [event] if self._path.exists() else [Event(wall_time=time.time(), file_version="brain.Event:2"), event]
        records = io.BytesIO()
        writer = RecordWriter(records)
        for record in events:
            writer.write(record.SerializeToString())
        self._append(records.getvalue())


def shown_values(images: Mapping[str, Image], histograms: Mapping[str, NDArray[Any]]) -> list[Any]:
    """Convert images and arrays of numbers, by name, to TensorBoard's images and histograms.

    Raises:
        ValueError: If a value is NaN or infinite.
    """
    values = [Summary.Value(tag=name, image=_encoded(image)) for name, image in images.items()]
    for name, numbers in histograms.items():
        histogram = make_histogram(numbers, _BINS)  # type: ignore[no-untyped-call]
        values.append(Summary.Value(tag=name, histo=histogram))
    return values


def _encoded(image: Image) -> Any:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82)  # an eighth of a PNG, see docs/decisions.md
    return Summary.Image(height=image.height, width=image.width, colorspace=_RGB, encoded_image_string=file.getvalue())
