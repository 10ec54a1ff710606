#!/usr/bin/env bash
# torch 2.14.1, CPU: AdamW(fused=True) pairs the elements of a parameter and its gradient by their position in memory,
# not by their index. A channels-last convolution weight with a contiguous gradient, which are ordinary tensors of one
# shape, is therefore updated wrongly, without an error or a warning. AdamW(fused=False) gives the same result for all
# layouts, and so does the fused one if the two layouts are equal.
# Exits non-zero if any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn

torch.manual_seed(0)
START, GRADIENT = torch.randn(2, 6, 4, 3, 3)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


def updated(weight_layout, gradient_layout, fused):
    """Take one step and return the weight."""
    weight = nn.Parameter(START.clone(memory_format=LAYOUTS[weight_layout]))
    weight.grad = GRADIENT.clone(memory_format=LAYOUTS[gradient_layout])
    torch.optim.AdamW([weight], lr=0.01, fused=fused).step()
    return weight.detach()


print("torch", torch.__version__)
expected = updated("contiguous", "contiguous", False)
for fused in (False, True):
    for weight in LAYOUTS:
        for gradient in LAYOUTS:
            error = (updated(weight, gradient, fused) - expected).abs().max().item()
            print(f"fused={fused}, weight {weight}, gradient {gradient}: largest error {error:.1e}")
            wrong = fused and weight != gradient
            assert error > 0.01 if wrong else error < 1e-6, "this has changed"
PYTHON
