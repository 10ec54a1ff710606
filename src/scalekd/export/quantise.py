"""Post-training quantisation of an ONNX model to int8, calibrated on the user's images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from scalekd.export.onnx import IMAGES, needed
from scalekd.models.weights import CARD_KEY, Card

# What holds nearly all of the work. Norms, softmax and activations stay in float32, which transformers need.
_OPERATORS = ["Conv", "Gemm", "MatMul"]


def quantise(source: str | Path, target: str | Path, batches: Iterable[Tensor], card: Card) -> None:
    """Write the model of `source` with matrix products and convolutions in int8 to `target`.

    Weights have a scale a channel, activations one a tensor, from the range that they take on the images.

    Args:
        source: A file that `export_onnx` wrote.
        target: The `.onnx` file to write.
        batches: Images to calibrate on, `[B, 3, h, w]` in [0, 1].
        card: As `export_onnx` takes it; quantisation loses the source's.
    """
    target = Path(target)
    source = Path(source)
    onnx = needed("onnx")
    quantization = needed("onnxruntime.quantization")
    shape_inference = needed("onnxruntime.quantization.shape_inference")
    with TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        shape_inference.quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            target,
            _reader(batches),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=_OPERATORS,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
    model = onnx.load(target)
    onnx.helper.set_model_props(model, {CARD_KEY: json.dumps(asdict(card))})
    onnx.save(model, target)


def _reader(batches: Iterable[Tensor]) -> Any:
    """Batches as onnxruntime asks for them, one after the other and then None."""
    feeds: Iterator[dict[str, Any]] = ({IMAGES: batch.numpy()} for batch in batches)

    class Reader(needed("onnxruntime.quantization").CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            return next(feeds, None)

    return Reader()
