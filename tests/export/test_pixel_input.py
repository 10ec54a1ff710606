"""ONNX files that take decoded images: `export --input uint8`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, TINY_CNN, Cli
from PIL import Image

from scalekd.data import Files, Split, evaluation_transform, whole_transform
from scalekd.data.loader import Key, ReplayDataset
from scalekd.exports.onnx import OnnxClassifier, export_onnx
from scalekd.exports.pixels import take_pixels
from scalekd.models import Classifier

pytest.importorskip("onnxscript")
SIZES = ((64, 64), (100, 70), (33, 90), (31, 200), (20, 27))  # height and width


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth pictures with noise, of several sizes, larger and smaller than the model's."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        rows, columns = np.mgrid[:height, :width]
        waves = 120 + 80 * np.sin(rows / 9)[..., None] * np.cos(columns / 7 + np.arange(3)[:, None, None]).transpose(
            1, 2, 0
        )
        noise = random.integers(0, 30, (height, width, 3))
        Image.fromarray((waves + noise).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def model() -> Classifier:
    torch.manual_seed(0)
    classifier = Classifier("resnet18", pretrained=False, num_classes=3, resolution=32, **TINY_CNN).eval()
    classifier.crop_fraction = 0.875
    return classifier


def test_any_size_is_resized_as_in_evaluation(tmp_path: Path, photos: Path, model: Classifier) -> None:
    file = tmp_path / "model.onnx"
    export_onnx(model, file, model.card(CLASSES))
    take_pixels(file, model.card(CLASSES))
    runtime = OnnxClassifier(file)
    assert runtime.takes_pixels
    assert runtime.classes == CLASSES
    files = [f"{photos}/{number}.png" for number in range(len(SIZES))]
    split = Split(Files(Path(), files), np.zeros(len(files), np.int32), ())
    whole, cut = (ReplayDataset(split, way) for way in (whole_transform(), evaluation_transform(32, 0.875)))
    for number in range(len(files)):
        pixels, prepared = whole[Key(0, number)].image, cut[Key(0, number)].image
        assert pixels is not None
        assert prepared is not None
        assert pixels.dtype == torch.uint8
        with torch.no_grad():
            wanted = model(prepared[None])
        assert (runtime(pixels[None]) - wanted).abs().max() < 0.02 * wanted.abs().max(), SIZES[number]
    batch = torch.randint(0, 256, (5, 3, 48, 40), dtype=torch.uint8)
    together, apart = runtime(batch), torch.cat([runtime(image[None]) for image in batch])
    assert torch.allclose(together, apart, atol=1e-5)


def test_the_command_writes_checks_and_predicts(tmp_path: Path, runs: Path, photos: Path, cli: Cli) -> None:
    output = tmp_path / "student.onnx"
    flags = ("--format", "onnx", "--int8", "--input", "uint8", "--output", output, "--workers", "0")
    done = cli("export", runs / "scalekd", *flags, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)["pixels"]["checked"]
    assert found["images"] == 6
    assert found["difference"] < 0.05 * found["scale"]
    ours = cli("predict", runs / "scalekd", photos, "--top", "1", "--json").out.splitlines()
    for file in (output, tmp_path / "student.int8.onnx"):
        told = cli("predict", file, photos, "--top", "1", "--json")
        assert told.code == 0, told.err
        assert [json.loads(line)["image"] for line in told.out.splitlines()] == [
            json.loads(line)["image"] for line in ours
        ]


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--format", "timm"), ("--input uint8", "onnx")),
        (("--format", "onnx", "--opset", "17"), ("opset", "18", "17")),
    ],
)
def test_what_cannot_take_pixels_is_refused(
    tmp_path: Path, runs: Path, cli: Cli, flags: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    cli("export", runs / "scalekd", *flags, "--input", "uint8", "--output", tmp_path / "x.onnx").refused(*parts)
    assert not list(tmp_path.iterdir())
