#!/usr/bin/env bash
# transformers 5.24.0 with torch 2.14.1: if a DINOv3 ViT runs once on fake tensors (torch's FakeTensorMode, which counts
# memory or traces without computing), every later real forward of such a model with the same grid, type and device
# returns a fake tensor without values, silently: the coordinates of the patches are kept in a cache of the process.
# Exits non-zero if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 transformers==5.24.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

print("torch", torch.__version__, "transformers", transformers.__version__)
config = transformers.DINOv3ViTConfig(
    hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=16
)
model, image = transformers.DINOv3ViTModel(config).eval(), torch.rand(1, 3, 32, 32)
with torch.no_grad():
    with FakeTensorMode(allow_non_fake_inputs=True):
        model(torch.empty(1, 3, 32, 32))
    found = model(image).last_hidden_state
print("a real forward of a real image gives", type(found).__name__)
assert isinstance(found, FakeTensor), "this has changed: the tokens are real"
PYTHON
