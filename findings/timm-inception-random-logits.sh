#!/usr/bin/env bash
# timm 1.0.31: inception_v3 with its own random initial weights, in eval mode, answers one image of values in [0, 1] with
# logits around 1e11 to 1e12, where resnet50 stays below 10. They are finite, so no check for NaN or infinity sees it,
# but two memory layouts of the same float32 model differ by more than 1e4 in a logit: any absolute tolerance fails, and
# a relative one shows that the difference is rounding.
# Exits non-zero if any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 timm==1.0.31 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import timm
import torch

print("torch", torch.__version__, "timm", timm.__version__)
largest = {}
for name, size in (("resnet50", 224), ("inception_v3", 299)):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).eval()
    image = torch.rand(1, 3, size, size)
    with torch.no_grad():
        contiguous = model(image)
        other = model.to(memory_format=torch.channels_last)(image)
    largest[name] = contiguous.abs().max().item()
    difference = (other - contiguous).abs().max().item()
    relative = difference / largest[name]
    print(f"{name}: largest logit {largest[name]:.1e}; layouts differ by {difference:.1e}, relative {relative:.1e}")
    assert relative < 1e-4, "this has changed: more than rounding"
assert largest["resnet50"] < 10 < 1e9 < largest["inception_v3"], "this has changed"
assert difference > 1e3, "this has changed"
PYTHON
