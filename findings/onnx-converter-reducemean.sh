#!/usr/bin/env bash
# onnx 1.23.2: `version_converter.convert_version` takes a valid model of opset 18 with a ReduceMean to opset 17 or below
# without an error, but the result is not valid. ReduceMean-18 has its axes as an input and an attribute
# `noop_with_empty_axes`; the converter moves the axes into an attribute, as ReduceMean-13 has it, and leaves the other
# attribute where it is, which ReduceMean-13 does not know. onnx's own checker then refuses the model. A model whose node
# does not write the attribute out (0 is its default) is converted as it should be.
# Exits non-zero if any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
from onnx import TensorProto, checker, helper, version_converter


def model(**attributes):
    """The mean over the last axis."""
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=1, **attributes)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, w]) for n, w in (("x", 4), ("y", 1))]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [-1])
    graph = helper.make_graph([node], "mean", ends[:1], ends[1:], [axes])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def verdict(found):
    try:
        checker.check_model(found)
    except checker.ValidationError as error:
        return str(error).splitlines()[0]
    return "valid"


REFUSED = "Unrecognized attribute: noop_with_empty_axes for operator ReduceMean"
for written, attributes, expected in (("written", {"noop_with_empty_axes": 0}, REFUSED), ("left out", {}, "valid")):
    before = model(**attributes)
    checker.check_model(before, full_check=True)
    for opset in (17, 14):
        after = version_converter.convert_version(before, opset)
        found = verdict(after)
        print(f"noop_with_empty_axes {written}, opset 18 -> {opset}: {found}")
        assert found == expected, f"no longer {expected!r}"
PYTHON
