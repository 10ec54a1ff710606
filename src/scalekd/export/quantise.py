"""Post-training quantisation of an ONNX model to int8, calibrated on the user's images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

from torch import Tensor

from scalekd.export.onnx import IMAGES, needed
from scalekd.models.weights import CARD_KEY, Card

# What holds nearly all of the work. Norms, softmax and activations stay in float32, which transformers need.
OPERATORS = ("Conv", "Gemm", "MatMul")
# Their inputs are rounded, not their outputs: a scale for what an activation is about to cut (ReLU6 above all) wastes
# most of its steps, and OpenVINO computes a ViT's quantised patch embedding wrongly. See docs/decisions.md.
OPTIONS = {"OpTypesToExcludeOutputQuantization": OPERATORS, "QuantizeBias": False}

OLDEST_OPSET = 13  # the first whose DequantizeLinear takes a scale for each channel


def quantise(
    source: str | Path,
    target: str | Path,
    batches: Iterable[Tensor],
    card: Card,
    *,
    operators: Sequence[str] = OPERATORS,
    options: Mapping[str, Any] = MappingProxyType(OPTIONS),
) -> None:
    """Write the model of `source` with matrix products and convolutions in int8 to `target`.

    Weights have a scale a channel, activations one a tensor, from the range that they take on the images.

    Args:
        source: A file that `export_onnx` wrote.
        target: The `.onnx` file to write.
        batches: Images to calibrate on, `[B, 3, h, w]` in [0, 1].
        card: As `export_onnx` takes it; quantisation loses the source's.
        operators: Kinds of operators to quantise.
        options: `extra_options` of `onnxruntime.quantization.quantize_static`.
    """
    source, target = Path(source), Path(target)
    onnx = needed("onnx")
    quantization = needed("onnxruntime.quantization")
    shape_inference = needed("onnxruntime.quantization.shape_inference")
    with TemporaryDirectory() as scratch:
        prepared, quantised = Path(scratch) / "prepared.onnx", Path(scratch) / "quantised.onnx"
        shape_inference.quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            quantised,
            _reader(batches),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(operators),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            extra_options=dict(options),
        )
        model = onnx.load(quantised)
    onnx.helper.set_model_props(model, {CARD_KEY: json.dumps(asdict(card))})
    onnx.save(model, target)


def _reader(batches: Iterable[Tensor]) -> Any:
    """Batches as onnxruntime asks for them, one after the other and then None."""
    feeds: Iterator[dict[str, Any]] = ({IMAGES: batch.numpy()} for batch in batches)

    class Reader(needed("onnxruntime.quantization").CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            return next(feeds, None)

    return Reader()
