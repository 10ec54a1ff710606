"""Puts resizing and cropping into an ONNX file, so that it takes images as they are decoded."""

from __future__ import annotations

import json
from pathlib import Path

from scalekd.errors import UserError
from scalekd.exports.onnx import IMAGES, LOGITS, needed
from scalekd.models.weights import CARD_KEY, Card

PIXELS = "pixels"
# The evaluation transform (`evaluation_transform`), but for the cut of extremely elongated images: the short side is
# resized to a number of pixels (bicubic, antialiased; the long side is rounded down), the centre is cut (half a pixel
# is rounded to even), and values are rounded as in uint8. Resize gets all four sizes: with the attribute
# `axes`, onnxruntime 1.32 reorders two sizes as if they were four when it moves the Transpose, and refuses the file.
_GRAPH = """
<ir_version: {ir}, opset_import: ["": {opset}]>
prepare (uint8[batch, height, width, 3] {pixels}) => (float[batch, 3, {side}, {side}] prepared) {{
  channels = Transpose <perm = [0, 3, 1, 2]> ({pixels})
  values = Cast <to = 1> (channels)
  batch_and_channels = Shape <end = 2> (values)
  shape = Shape <start = 2> (values)
  shortest = ReduceMin <keepdims = 1> (shape)
  wanted = Constant <value = int64[1] {{{short}}}> ()
  scaled = Mul (shape, wanted)
  sizes = Div (scaled, shortest)
  all_sizes = Concat <axis = 0> (batch_and_channels, sizes)
  resized = Resize <mode = "cubic", cubic_coeff_a = -0.5, antialias = 1> (values, , , all_sizes)
  black = Constant <value = float {{0.0}}> ()
  white = Constant <value = float {{255.0}}> ()
  clipped = Clip (resized, black, white)
  whole = Round (clipped)
  side = Constant <value = int64[1] {{{side}}}> ()
  rest = Sub (sizes, side)
  rest_float = Cast <to = 1> (rest)
  half = Constant <value = float {{0.5}}> ()
  middle = Mul (rest_float, half)
  middle_whole = Round (middle)
  starts = Cast <to = 7> (middle_whole)
  ends = Add (starts, side)
  axes = Constant <value = int64[2] {{2, 3}}> ()
  cropped = Slice (whole, starts, ends, axes)
  prepared = Div (cropped, white)
}}
"""


def take_pixels(path: Path, card: Card) -> None:
    """Change a file of `export_onnx` in place: its input becomes `pixels` `[batch, height, width, 3]`, uint8 RGB.

    All images of a batch have one size, which may be any.

    Args:
        path: The file.
        card: Its card, which states side and crop.

    Raises:
        UserError: If its weights are in a second file.
    """
    onnx = needed("onnx")
    if path.with_name(f"{path.name}.data").exists():
        raise UserError(f"input: {path.name} has its weights in a second file, to which no resizing can be added")
    model = onnx.load(path)
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    text = _GRAPH.format(
        ir=model.ir_version,
        opset=opset,
        pixels=PIXELS,
        side=card.resolution,
        short=round(card.resolution / card.crop_fraction),
    )
    prepare = onnx.compose.add_prefix(onnx.parser.parse_model(text), "prepare_", rename_inputs=False)
    versions = list(model.opset_import)
    del prepare.opset_import[:]
    prepare.opset_import.extend(versions)  # merging needs the same operators in both
    merged = onnx.compose.merge_models(prepare, model, io_map=[("prepare_prepared", IMAGES)], outputs=[LOGITS])
    del merged.opset_import[:]  # it has each of them twice
    merged.opset_import.extend(versions)
    del merged.metadata_props[:]
    onnx.helper.set_model_props(merged, {CARD_KEY: json.dumps(card.as_dict())})
    onnx.checker.check_model(merged)
    onnx.save(merged, path)
