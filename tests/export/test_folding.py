"""Training branches are folded in exports, but kept if folding is wrong, and in the timm folder."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import timm
import torch
from conftest import TINY_CNN, Cli
from safetensors.torch import load_file
from torch import Tensor, nn

from scalekd.exports.folding import fold
from scalekd.exports.onnx import OnnxClassifier
from scalekd.exports.program import ProgramClassifier
from scalekd.models import Classifier

FOLDED = ("mobileone_s0", "repvgg_a0", "repghostnet_050", "repvit_m0_9", "fastvit_t8", "lcnetv2_base")


def trained(name: str) -> Classifier:
    """A student whose norms have statistics of images, so that a fold that ignores them is detected."""
    torch.manual_seed(0)
    model = Classifier(name, pretrained=False, num_classes=3, resolution=64)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.normal_(module.bias, std=0.1)
    with torch.no_grad():
        model.train()(torch.rand(16, 3, 64, 64))
    return model.eval()


def convolutions(model: nn.Module) -> int:
    return sum(isinstance(module, nn.Conv2d) for module in model.modules())


def branches(model: nn.Module) -> int:
    kinds = (nn.Conv2d, nn.modules.batchnorm._BatchNorm)
    return sum(isinstance(module, kinds) for module in model.modules())


@pytest.mark.parametrize("name", FOLDED)
def test_branches_are_folded_on_a_copy(name: str) -> None:
    model = trained(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = [torch.rand(3, 3, 64, 64), torch.rand(2, 3, 64, 64)]
    folded = fold(model, images)
    assert branches(folded.classifier) < branches(model)
    assert f"{branches(model)} convolutions and norms into {branches(folded.classifier)}" in folded.note
    with torch.no_grad():
        wanted = model(images[0])
        torch.testing.assert_close(folded.classifier(images[0]), wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max())
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_student_without_branches_is_left_as_it_is() -> None:
    model = Classifier("resnet18", pretrained=False, num_classes=3, resolution=32, **TINY_CNN).eval()
    folded = fold(model, [torch.rand(1, 3, 32, 32)])
    assert folded.classifier is model
    assert not folded.note


class Block(nn.Module):
    """A user's own layer; `how` selects what its `fuse` does."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.conv = how, nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        return 2 * self.conv(images)  # type: ignore[no-any-return]

    def fuse(self) -> nn.Module:
        if self.how == "raises":
            raise RuntimeError("fuse: not in this mode")
        if self.how == "infinite":
            nn.init.constant_(self.conv.bias, float("nan"))  # type: ignore[arg-type]
        return self.conv  # forgets the factor


class Net(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.block = Block(how)

    def forward(self, images: Tensor) -> Tensor:
        return self.block(images).mean((2, 3))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("how", "told"),
    [("forgets", "gives other logits"), ("infinite", "gives other logits"), ("raises", "fuse: not in this mode")],
)
def test_a_wrong_fold_is_not_taken_and_said(how: str, told: str) -> None:
    torch.manual_seed(0)
    model = Classifier(Net(how), resolution=32).eval()
    folded = fold(model, [torch.rand(2, 3, 32, 32)])
    assert folded.classifier is model
    assert folded.note.startswith("nothing: ")
    assert told in folded.note
    assert torch.isfinite(model(torch.rand(1, 3, 32, 32))).all()


def test_exports_are_folded_and_the_timm_folder_stays_trainable(cli: Cli, tmp_path: Path) -> None:
    model = trained("mobileone_s0")
    weights = tmp_path / "student.safetensors"
    model.save(weights)
    told = {}
    for kind, name in (("onnx", "a.onnx"), ("torch-export", "a.pt2"), ("timm", "timm")):
        outcome = cli("export", weights, "--format", kind, "--output", tmp_path / name, "--json")
        assert outcome.code == 0, outcome.err
        told[kind] = json.loads(outcome.out)
        assert told[kind]["checked"]["top1"] == 100
    plain = convolutions(fold(model, [torch.rand(1, 3, 64, 64)]).classifier)
    assert [node.op_type for node in onnx.load(tmp_path / "a.onnx").graph.node].count("Conv") == plain
    assert (tmp_path / "a.onnx").stat().st_size < 0.5 * weights.stat().st_size
    assert (tmp_path / "a.pt2").stat().st_size < 0.5 * weights.stat().st_size
    assert "convolutions and norms into" in told["onnx"]["folded"]
    assert "folded" not in told["timm"]
    images = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        for exported in (OnnxClassifier(tmp_path / "a.onnx"), ProgramClassifier(tmp_path / "a.pt2")):
            torch.testing.assert_close(exported(images), model(images), rtol=1e-3, atol=1e-3)
    kept = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    assert convolutions(kept) == convolutions(model) > plain
    assert load_file(tmp_path / "timm" / "model.safetensors").keys() == model.model.state_dict().keys()
