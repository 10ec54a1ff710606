#!/usr/bin/env bash
# OpenVINO 2026.4.1 reads an ONNX Resize with antialias=1 without an error or a warning and computes it without
# antialiasing: an image that is scaled down by a large factor becomes a sample of single pixels instead of an average.
# A model with its resizing in the file therefore sees other images in OpenVINO than in onnxruntime 1.32.0.
# Exits non-zero if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1 onnxruntime==1.32.0 onnx==1.23.2
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import openvino

print("openvino", openvino.__version__, "onnxruntime", ort.__version__)
GRAPH = """
<ir_version: 10, opset_import: ["": 18]>
resize (float[1, 1, 256, 256] x) => (float[1, 1, 16, 16] y) {
  k = Constant <value = int64[4] {1, 1, 16, 16}> ()
  y = Resize <mode = "%s", antialias = %d> (x, , , k)
}
"""
image = np.random.default_rng(0).integers(0, 256, (1, 1, 256, 256)).astype(np.float32)


def run(mode, antialias):
    model = onnx.parser.parse_model(GRAPH % (mode, antialias))
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    theirs = ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": image})[0]
    core = openvino.Core()
    ours = core.compile_model(core.read_model(data), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(image)[0]
    return theirs, ours


for mode in ("linear", "cubic"):
    (smooth, other), (sampled, same) = run(mode, 1), run(mode, 0)
    print(f"{mode}: deviation of the result, onnxruntime with and without antialias {smooth.std():.1f} {sampled.std():.1f},"
          f" OpenVINO {other.std():.1f} {same.std():.1f}")
    assert np.abs(same - sampled).max() < 0.1, "this has changed: they differ without antialiasing"
    assert np.array_equal(other, same), "this has changed: OpenVINO heeds antialias"
    assert smooth.std() < 0.5 * other.std(), "this has changed"
PYTHON
