"""ONNX: a model that takes RGB images in [0, 1], with its normalisation inside and its card in the metadata."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scalekd.errors import UserError
from scalekd.models import Classifier
from scalekd.models.weights import CARD_KEY, Card, read_card

IMAGES, LOGITS = "images", "logits"


def needed(module: str) -> Any:
    """A module of the extra `onnx`.

    Raises:
        UserError: If it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"onnx: {error.name} is not installed; pip install 'scalekd[onnx]'") from None


def example(classifier: Classifier) -> Tensor:
    """Two images of the model's size: with one, the tracer would take the batch for fixed."""
    parameter = next(classifier.parameters())
    return torch.rand(2, 3, classifier.resolution, classifier.resolution, device=parameter.device)


def export_onnx(classifier: Classifier, path: str | Path, card: Card, opset: int | None = None) -> int:
    """Write a model that takes `images` `[batch, 3, side, side]` and gives `logits` `[batch, K]`; the batch is free.

    Weights are inside the file, but for models above 2 GB (a limit of the format), which get a second file.

    Args:
        classifier: The model.
        path: The `.onnx` file.
        card: What the metadata entry `scalekd` says, as JSON: class names, resolution, crop and more.
        opset: Version of ONNX's operators; by default torch's choice.

    Returns:
        The version of the operators.

    Raises:
        UserError: If the model, or this version of the operators, cannot express it.
    """
    path = Path(path)
    onnx = needed("onnx")
    needed("onnxscript")
    try:
        with _quiet():
            program = torch.onnx.export(
                classifier.eval(),
                (example(classifier),),
                dynamo=True,
                dynamic_shapes=({0: "batch"},),
                input_names=[IMAGES],
                output_names=[LOGITS],
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:
        raise UserError(f"format: {classifier.name} cannot be exported to ONNX: {first_line(error)}") from error
    assert program is not None
    written = program.model.opset_imports[""]
    if opset is not None and written != opset:  # the exporter keeps its own where it cannot convert
        raise UserError(
            f"opset: {opset} lacks an operator that {classifier.name} needs; give --opset {written} or leave it"
        )
    program.model.metadata_props[CARD_KEY] = json.dumps(asdict(card))
    path.parent.mkdir(parents=True, exist_ok=True)
    program.save(path)
    onnx.checker.check_model(str(path))
    return int(written)


def first_line(error: Exception) -> str:
    """An exception's message up to its first line break, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of each conversion that it tries; what matters is looked at afterwards."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


class OnnxClassifier:
    """An ONNX file written by `export_onnx`, run by onnxruntime on the CPU.

    Attributes:
        name: The architecture.
        classes: Class names in the order of the logits.
        resolution: Image side in pixels.
        crop_fraction: Share of the resized image that evaluation looks at.
        num_classes: Width of the head.

    Raises:
        UserError: If the file is missing, damaged, or not ours.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if not path.is_file():
            raise UserError(f"model: no such file: {path}")
        runtime = needed("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own kinds have no parent of theirs
            raise UserError(f"model: {path} cannot be read: {first_line(error)}") from None
        text = self._session.get_modelmeta().custom_metadata_map.get(CARD_KEY)
        if text is None:
            raise UserError(f"model: {path} was not exported by scalekd: it does not say its size and classes")
        card = read_card(text, path)
        self.name, self.classes, self.num_classes = card.architecture, card.classes, card.num_classes
        self.resolution, self.crop_fraction = card.resolution, card.crop_fraction

    def __call__(self, images: Tensor) -> Tensor:
        """RGB images in [0, 1] `[B, 3, h, w]` of the model's size -> logits `[B, K]`."""
        (logits,) = self._session.run([LOGITS], {IMAGES: np.ascontiguousarray(images.numpy())})
        return torch.from_numpy(logits)
