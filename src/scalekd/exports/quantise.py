"""Quantise an ONNX model to int8 after training, calibrated on the user's images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from torch import Tensor

from scalekd.exports.onnx import IMAGES, needed
from scalekd.models.weights import CARD_KEY, Card

PRODUCTS = ("Conv", "Gemm", "MatMul")  # nearly all of the computation
CLIPS = ("Relu", "Clip")
# Operators of plain CNNs next to these. Any other (Softmax, Erf, Sigmoid, Mish, Attention, ...) may be an activation.
NEUTRAL = frozenset({
    "Add", "AveragePool", "BatchNormalization", "Cast", "Concat", "Constant", "Div", "Expand", "Flatten", "Gather",
    "GlobalAveragePool", "Identity", "MaxPool", "Mul", "Pad", "ReduceMean", "Reshape", "Resize", "Shape", "Slice",
    "Split", "Squeeze", "Sub", "Transpose", "Unsqueeze",
})  # fmt: skip


class Way(NamedTuple):
    """A way to quantise a model.

    Attributes:
        operators: Types of operators to quantise. All others, such as norms and softmax, stay in float32.
        options: `extra_options` of `onnxruntime.quantization.quantize_static`.
    """

    operators: tuple[str, ...]
    options: Mapping[str, Any]


# Biases stay in float32: OpenCV 5.0.0 cannot run a file in which they and outputs are rounded. See docs/export.md.
AFTER_CLIPS = Way((*PRODUCTS, *CLIPS), {"QuantizeBias": False})
INPUTS_ONLY = Way(PRODUCTS, {"OpTypesToExcludeOutputQuantization": PRODUCTS, "QuantizeBias": False})


def choose_way(operators: Set[str]) -> Way:
    """Choose how to quantise a model, given the types of its operators.

    If ReLU and ReLU6 are the only activations, they are quantised like the products before them: no step of a scale is
    wasted on what they clip, and a runtime can compute a convolution with its activation in integers. Otherwise only
    the inputs of products are rounded, because OpenVINO answers a ViT near chance if outputs are rounded too.
    """
    plain = operators <= NEUTRAL | {*PRODUCTS, *CLIPS}
    return AFTER_CLIPS if plain and operators & set(CLIPS) else INPUTS_ONLY


def quantise(
    source: str | Path,
    target: str | Path,
    batches: Iterable[Tensor],
    card: Card,
    *,
    way: Way | None = None,
) -> None:
    """Quantise the matrix products and convolutions of `source` to int8, and write the model to `target`.

    Weights have one scale per channel, activations one per tensor, from their range on the calibration images.

    Args:
        source: A file that `export_onnx` wrote.
        target: The `.onnx` file to write.
        batches: Images to calibrate on, `[B, 3, h, w]` in [0, 1].
        card: As for `export_onnx`; quantisation drops that of the source.
        way: How to quantise. Default: what `choose_way` returns for the model.
    """
    source, target = Path(source), Path(target)
    onnx = needed("onnx")
    quantization = needed("onnxruntime.quantization")
    shape_inference = needed("onnxruntime.quantization.shape_inference")
    with TemporaryDirectory() as scratch:
        prepared, quantised = Path(scratch) / "prepared.onnx", Path(scratch) / "quantised.onnx"
        shape_inference.quant_pre_process(source, prepared, skip_symbolic_shape=True)
        operators, options = way or choose_way({node.op_type for node in onnx.load(prepared).graph.node})
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
    onnx.helper.set_model_props(model, {CARD_KEY: json.dumps(card.as_dict())})
    onnx.save(model, target)


def _reader(batches: Iterable[Tensor]) -> Any:
    """Wrap batches as onnxruntime's data reader, which returns one after the other and then None."""
    feeds: Iterator[dict[str, Any]] = ({IMAGES: batch.numpy()} for batch in batches)

    class Reader(needed("onnxruntime.quantization").CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            return next(feeds, None)

    return Reader()
