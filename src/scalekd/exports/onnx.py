"""Export to ONNX: a model that takes RGB images in [0, 1] and normalises them, with its card in the metadata."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scalekd.errors import UserError, first_line
from scalekd.models import Classifier
from scalekd.models.weights import CARD_KEY, Card, read_card

IMAGES, LOGITS = "images", "logits"
# As a fraction of the largest logit: float32 rounding stays far below it, a wrong conversion far above it.
_TOLERANCE = 1e-2


def needed(module: str) -> Any:
    """Import a module of the optional dependencies `onnx`.

    Raises:
        UserError: If it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"onnx: {error.name} is not installed; pip install '.[onnx]'") from None


def example(classifier: Classifier) -> Tensor:
    """Return two random images of the model's size; with one, the tracer would treat the batch size as fixed."""
    return _noise(classifier, 2)


def _noise(classifier: Classifier, count: int) -> Tensor:
    parameter = next(classifier.parameters())
    return torch.rand(count, 3, classifier.resolution, classifier.resolution, device=parameter.device)


def export_onnx(classifier: Classifier, path: str | Path, card: Card, opset: int | None = None) -> None:
    """Export a model from `images` `[batch, 3, side, side]` to `logits` `[batch, K]`, with any batch size.

    Weights are stored in the file, except for models above 2 GB (a limit of the format), which get a second file.
    The file is moved to `path` only after onnxruntime has reproduced the model's logits with it.

    Args:
        classifier: The model.
        path: The `.onnx` file.
        card: Written as JSON to the metadata entry `scalekd`: class names, resolution, crop and more.
        opset: Version of ONNX's operators; by default torch's choice.

    Raises:
        UserError: If the model cannot be exported, or not with this version of the operators.
    """
    path = Path(path)
    needed("onnxscript")
    _check_opset(opset)
    path.parent.mkdir(parents=True, exist_ok=True)
    reasons = []
    for way in _ways(opset):
        with TemporaryDirectory(dir=path.parent) as scratch:
            written = Path(scratch) / path.name
            try:
                with _quiet():
                    way(classifier.eval(), written, opset)
                _finish(classifier, written, card, opset)
            except OSError:  # for example a full disk; another exporter would not help
                raise
            except Exception as error:  # exporters raise their own exceptions, without a common base class
                reasons.append(first_line(error).rstrip("."))
                continue
            for file in Path(scratch).iterdir():
                file.replace(path.parent / file.name)
            return
    # Report the reason of the first exporter, which is the one made for this version; the others are fallbacks.
    if opset is None:
        raise UserError(f"format: {classifier.name} cannot be exported to ONNX: {reasons[0]}")
    raise UserError(
        f"opset: {classifier.name} cannot be written with version {opset} of the operators: {reasons[0]}; "
        "remove --opset to use torch's choice"
    )


def _check_opset(opset: int | None) -> None:
    """Check that a version of the operators exists and that an exporter supports it.

    Raises:
        UserError: If not.
    """
    onnx = needed("onnx")
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not _OLDEST <= opset <= newest:
        raise UserError(
            f"opset: {opset} is not supported; use {_OLDEST} to {newest}, the newest of onnx {onnx.__version__}"
        )


_Way = Callable[[Classifier, Path, "int | None"], None]
# Oldest versions of torch's exporters: TorchScript's supports 7 and later; the graph exporter translates to 18 and
# converts the result to nearby versions.
_OLDEST, _GRAPH_OLDEST = 7, 18


def _ways(opset: int | None) -> tuple[_Way, ...]:
    """Return the exporters to try for a version, the one made for it first."""
    if opset is None:
        return (_write_graph,)
    return (_write_graph, _write_converted) if opset >= _GRAPH_OLDEST else (_write_trace, _write_graph)


def _write_graph(classifier: Classifier, path: Path, opset: int | None) -> None:
    """Export with torch's exporter of exported programs."""
    program = torch.onnx.export(
        classifier,
        (example(classifier),),
        dynamo=True,
        dynamic_shapes=({0: "batch"},),
        input_names=[IMAGES],
        output_names=[LOGITS],
        opset_version=opset,
        verbose=False,
    )
    assert program is not None
    program.save(path)


def _write_trace(classifier: Classifier, path: Path, opset: int | None) -> None:
    """Export with torch's TorchScript exporter, which supports old versions, with unfused attention, as they need."""
    plain = copy.deepcopy(classifier)
    for module in plain.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", False)  # noqa: B010 (a module's attributes are tensors to mypy)
    torch.onnx.export(
        plain,
        (example(classifier),),
        path,
        dynamo=False,
        dynamic_axes={IMAGES: {0: "batch"}, LOGITS: {0: "batch"}},
        input_names=[IMAGES],
        output_names=[LOGITS],
        opset_version=opset,
        verbose=False,
    )


def _write_converted(classifier: Classifier, path: Path, opset: int | None) -> None:
    """Export with torch's default version and convert with onnx, which supports versions that torch does not yet."""
    onnx = needed("onnx")
    _write_graph(classifier, path, None)
    onnx.save(onnx.version_converter.convert_version(onnx.load(path), opset), path)


def _finish(classifier: Classifier, path: Path, card: Card, opset: int | None) -> None:
    """Add the card to a file, and check its version, its operators and its logits at another batch size.

    Raises:
        ValueError: If its version is another one, or its logits differ.
    """
    onnx = needed("onnx")
    model = onnx.load(path, load_external_data=False)
    version = next(entry.version for entry in model.opset_import if not entry.domain)
    if opset not in (None, version):  # the exporter keeps its own version if it cannot convert
        raise ValueError(f"torch's exporter kept version {version}")
    onnx.helper.set_model_props(model, {CARD_KEY: json.dumps(card.as_dict())})
    onnx.save(model, path)
    onnx.checker.check_model(str(path))
    images = _noise(classifier, 3)
    with torch.no_grad():
        wanted = classifier(images).cpu()
    difference = (OnnxClassifier(path)(images.cpu()) - wanted).abs().max().item()
    if not difference <= _TOLERANCE * wanted.abs().max().item():  # written so that NaN is not agreement either
        raise ValueError(f"its logits differ by up to {difference:.1e} from the model's")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters, which report every conversion that they try; the result is checked afterwards."""
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
        crop_fraction: Fraction of the resized image that is used in evaluation.
        num_classes: Width of the head.
        multi_label: Whether an image may have several classes.
        takes_pixels: Whether it takes whole images as uint8, and resizes and crops them itself.

    Raises:
        UserError: If the file is missing, corrupt, or was not exported by scalekd.
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
        except Exception as error:  # onnxruntime's exceptions have no common base class
            raise UserError(f"model: {path} cannot be read: {first_line(error)}") from None
        text = self._session.get_modelmeta().custom_metadata_map.get(CARD_KEY)
        if text is None:
            raise UserError(f"model: {path} was not exported by scalekd: it lacks the metadata on size and classes")
        card = read_card(text, path)
        self.name, self.classes, self.num_classes = card.architecture, card.classes, card.num_classes
        self.resolution, self.crop_fraction = card.resolution, card.crop_fraction
        self.multi_label = card.multi_label
        self.takes_pixels = self._session.get_inputs()[0].type == "tensor(uint8)"

    def __call__(self, images: Tensor) -> Tensor:
        """RGB images -> logits `[B, K]`.

        Images are `[B, 3, h, w]`: in [0, 1] and of the model's size or, if it takes pixels, uint8 and of any size.
        """
        channels_last = images.permute(0, 2, 3, 1) if self.takes_pixels else images
        name = self._session.get_inputs()[0].name
        (logits,) = self._session.run([LOGITS], {name: np.ascontiguousarray(channels_last.numpy())})
        return torch.from_numpy(logits)
