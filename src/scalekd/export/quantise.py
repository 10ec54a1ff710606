"""Quantise an ONNX model to int8 after training, calibrated on the user's images."""

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

# Operators with nearly all of the computation. Norms, softmax and activations stay in float32, as transformers need.
OPERATORS = ("Conv", "Gemm", "MatMul")
# Only the inputs of these operators are quantised, not their outputs: if an activation (above all ReLU6) clips the
# output next, most steps of its scale are wasted; and OpenVINO computes a ViT's quantised patch embedding wrongly. See
# docs/decisions.md.
OPTIONS = {"OpTypesToExcludeOutputQuantization": OPERATORS, "QuantizeBias": False}


def quantise(
    source: str | Path,
    target: str | Path,
    batches: Iterable[Tensor],
    card: Card,
    *,
    operators: Sequence[str] = OPERATORS,
    options: Mapping[str, Any] = MappingProxyType(OPTIONS),
) -> None:
    """Quantise the matrix products and convolutions of `source` to int8, and write the model to `target`.

    Weights have one scale per channel, activations one per tensor, from their range on the calibration images.

    Args:
        source: A file that `export_onnx` wrote.
        target: The `.onnx` file to write.
        batches: Images to calibrate on, `[B, 3, h, w]` in [0, 1].
        card: As for `export_onnx`; quantisation drops that of the source.
        operators: Types of operators to quantise.
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
    """Wrap batches as onnxruntime's data reader, which returns one after the other and then None."""
    feeds: Iterator[dict[str, Any]] = ({IMAGES: batch.numpy()} for batch in batches)

    class Reader(needed("onnxruntime.quantization").CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            return next(feeds, None)

    return Reader()
