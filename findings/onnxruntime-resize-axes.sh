#!/usr/bin/env bash
# onnxruntime 1.32.0 refuses, or fails to run, a valid model in which a Resize with the attribute `axes` stands between
# two transposes: its optimiser moves the first Transpose past the Resize and reorders the two sizes (or scales) as if
# they were four. Without graph optimisation the same model runs. Since `axes` came with opset 18, only newer files are
# concerned, for example those that resize [N, H, W, C] images before a convolution.
# Exits non-zero if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort

print("onnxruntime", ort.__version__, "onnx", onnx.__version__)
ort.set_default_logger_severity(4)
GRAPH = """
<ir_version: 10, opset_import: ["": 18]>
resize (float[1, 8, 12, 3] images) => (float[1, 4, 6, 3] resized) {
  x = Transpose <perm = [0, 3, 1, 2]> (images)
  %s
  resized = Transpose <perm = [0, 2, 3, 1]> (y)
}
"""
SIZES = 'k = Constant <value = int64[2] {4, 6}> ()\n y = Resize <mode = "linear", axes = [2, 3]> (x, , , k)'
SCALES = 'k = Constant <value = float[2] {0.5, 0.5}> ()\n y = Resize <mode = "linear", axes = [2, 3]> (x, , k)'
ALL = 'k = Constant <value = int64[4] {1, 3, 4, 6}> ()\n y = Resize <mode = "linear"> (x, , , k)'
images = np.arange(8 * 12 * 3, dtype=np.float32).reshape(1, 8, 12, 3)


def outcome(nodes, level):
    model = onnx.parser.parse_model(GRAPH % nodes)
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = level, 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return str(session.run(None, {"images": images})[0].shape)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:110]}"


off, on = ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL
for name, nodes, works in (("two sizes", SIZES, False), ("two scales", SCALES, False), ("four sizes", ALL, True)):
    plain, optimised = outcome(nodes, off), outcome(nodes, on)
    print(f"{name}: not optimised {plain}; optimised {optimised}")
    assert plain == "(1, 4, 6, 3)", "this has changed"
    assert (optimised == plain) is works, "this has changed"
PYTHON
