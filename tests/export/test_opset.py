"""Versions of ONNX's operators: supported ones give the same logits; others are refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from conftest import TINY_CNN, TINY_VIT, Cli
from torch import Tensor, nn

from scalekd.errors import UserError
from scalekd.exports.onnx import OnnxClassifier, export_onnx
from scalekd.models import Classifier

STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "cnn": ("resnet18", TINY_CNN),
    "depthwise": ("mobilenetv1_100", {}),
    "mixer": ("mixer_s16_224", {"img_size": 32}),
    "vit": ("vit_tiny_patch16_224", TINY_VIT),
}
NEWEST = onnx.defs.onnx_opset_version()


def student(kind: str) -> Classifier:
    torch.manual_seed(0)
    name, arguments = STUDENTS[kind]
    return Classifier(name, pretrained=False, num_classes=3, resolution=32, **arguments).eval()


def assert_agrees(file: Path, model: nn.Module, opset: int) -> None:
    """Assert that a file is valid, of this version, and gives the model's logits at any batch size."""
    assert [(entry.domain, entry.version) for entry in onnx.load(file).opset_import] == [("", opset)]
    onnx.checker.check_model(str(file), full_check=True)
    for batch in (1, 5):
        images = torch.rand(batch, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(OnnxClassifier(file)(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", STUDENTS)
@pytest.mark.parametrize("opset", [13, 17])
def test_older_versions_are_written(tmp_path: Path, kind: str, opset: int) -> None:
    model = student(kind)
    export_onnx(model, tmp_path / "a.onnx", model.card(), opset)
    assert_agrees(tmp_path / "a.onnx", model, opset)
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


@pytest.mark.parametrize(("kind", "opset"), [("cnn", 7), ("cnn", NEWEST), ("vit", 9), ("vit", 22)])
def test_so_are_the_oldest_and_the_newest(tmp_path: Path, kind: str, opset: int) -> None:
    model = student(kind)
    export_onnx(model, tmp_path / "a.onnx", model.card(), opset)
    assert_agrees(tmp_path / "a.onnx", model, opset)


def test_what_really_lacks_an_operator_is_refused_and_what_is_there_stays(cli: Cli, tmp_path: Path) -> None:
    student("mixer").save(tmp_path / "mixer.safetensors")
    file = tmp_path / "a.onnx"
    file.write_text("earlier")
    base = ("export", tmp_path / "mixer.safetensors", "--format", "onnx", "--output", file, "--overwrite")
    outcome = cli(*base, "--opset", "7")  # GELU needs the error function, which version 9 added
    outcome.refused("opset: mixer_s16_224", "version 7", "No Op registered for Erf")
    assert "graph(" not in outcome.out + outcome.err
    for opset in (-1, 0, 6, NEWEST + 1, 99):
        cli(*base, "--opset", str(opset)).refused(f"opset: {opset} is not supported", f"use 7 to {NEWEST}")
    assert file.read_text() == "earlier"
    assert len(list(tmp_path.iterdir())) == 2


class OfTheBatch(nn.Module):
    """A tracer records only one branch, so that the logits at another batch size are wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.mean((2, 3)))
        return logits if len(images) == 2 else 2 * logits


class Sorting(nn.Module):
    """Uses an operator that ONNX added in version 11."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.mean((2, 3)).cumsum(1))
        return logits


@pytest.mark.parametrize(("module", "opset", "reason"), [(OfTheBatch, 17, "logits differ"), (Sorting, 10, "cumsum")])
def test_a_file_is_left_only_if_it_agrees(tmp_path: Path, module: type[nn.Module], opset: int, reason: str) -> None:
    model = Classifier(module(), resolution=32).eval()
    with pytest.raises(UserError, match=f"version {opset} .*{reason}"):
        export_onnx(model, tmp_path / "a.onnx", model.card(), opset)
    assert not list(tmp_path.iterdir())
