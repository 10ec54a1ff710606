"""Exported models give the same logits in timm, onnxruntime and torch, for a CNN, a Mixer and a ViT."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import timm
import torch
from conftest import CLASSES, TINY_CNN, TINY_RUN, TINY_VIT, Cli
from safetensors import safe_open

from scalekd.exports.onnx import OnnxClassifier
from scalekd.exports.program import ProgramClassifier
from scalekd.exports.timm_folder import read_timm_folder
from scalekd.models import Classifier

STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "cnn": ("resnet18", TINY_CNN),
    "mixer": ("mixer_s16_224", {"img_size": 32}),
    "vit": ("vit_tiny_patch16_224", TINY_VIT),
}


def write(folder: Path, kind: str, classes: tuple[str, ...] = CLASSES) -> tuple[Classifier, Path]:
    """A student with random weights, and its file."""
    torch.manual_seed(0)
    name, arguments = STUDENTS[kind]
    model = Classifier(name, pretrained=False, num_classes=3, resolution=32, **arguments).eval()
    model.save(folder / f"{kind}.safetensors", classes, accuracy=50.0)
    return model, folder / f"{kind}.safetensors"


@pytest.mark.parametrize("kind", STUDENTS)
def test_onnx_agrees_on_real_images_at_any_batch(cli: Cli, data: Path, tmp_path: Path, kind: str) -> None:
    model, weights = write(tmp_path, kind)
    file = tmp_path / "out" / "student.onnx"
    outcome = cli("export", weights, "--format", "onnx", "--output", file, "--data", data, "--json")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert result["checked"]["images"] == 6
    assert result["checked"]["on"] == str(data / "val")
    assert result["checked"]["top1"] == 100
    assert result["checked"]["difference"] < 1e-4
    assert result["time_ratio"] > 0
    exported = OnnxClassifier(file)
    assert (exported.classes, exported.resolution) == (CLASSES, 32)
    for batch in (1, 5):
        images = torch.rand(batch, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(exported(images), model(images), rtol=1e-4, atol=1e-4)
    assert [path.name for path in file.parent.iterdir()] == ["student.onnx"]  # no other file is left
    graph = onnx.load(file).graph
    assert [(i.name, i.type.tensor_type.shape.dim[0].dim_param) for i in graph.input] == [("images", "batch")]


def test_torchs_program_agrees_at_any_batch(cli: Cli, tmp_path: Path) -> None:
    model, weights = write(tmp_path, "vit")
    outcome = cli("export", weights, "--format", "torch-export", "--output", tmp_path / "student.pt2")
    assert outcome.code == 0, outcome.err
    assert "same top-1 on 100.0%" in outcome.out
    assert "generated" in outcome.out
    exported, images = ProgramClassifier(tmp_path / "student.pt2"), torch.rand(5, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(exported(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", STUDENTS)
def test_plain_timm_loads_the_folder(cli: Cli, data: Path, tmp_path: Path, kind: str) -> None:
    model, weights = write(tmp_path, kind)
    folder = tmp_path / "folder"
    outcome = cli("export", weights, "--format", "timm", "--output", folder, "--data", data)
    assert outcome.code == 0, outcome.err
    assert "same top-1 on 100.0% of 6 images, largest difference of logits 0.0e+00" in outcome.out
    images = torch.rand(2, 3, 32, 32)
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(plain(model.prepare(images)), model(images))
        assert torch.equal(read_timm_folder(folder).eval()(images), model(images))
    config = timm.data.resolve_model_data_config(plain)
    assert (config["input_size"], config["crop_pct"]) == ((3, 32, 32), model.crop_fraction)
    assert (folder / "model.safetensors").read_bytes() == weights.read_bytes()  # with its card
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["scalekd"])["top1"] == 50
    assert read_timm_folder(folder).classes == CLASSES
    assert "license:" not in (folder / "README.md").read_text().split("---")[1]


def test_a_runs_card_tells_what_it_left(cli: Cli, data: Path, teacher_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained = cli(
        "distill", "--data", data, "--output", run, *TINY_RUN, "--teacher", teacher_file, "--no-check-teacher"
    )
    assert trained.code == 0, trained.err
    outcome = cli("export", run, "--format", "timm")
    assert outcome.code == 0, outcome.err
    card = (run / "export" / "timm" / "README.md").read_text()
    result = json.loads((run / "result.json").read_text())
    for part in ("scalekd", "teacher.safetensors", f"{result['top1']:.2f}", result["sha256"], "12 images", "epochs: 2"):
        assert part in card, part
    assert str(tmp_path) not in card
    cli("export", run, "--format", "timm", "--output", run).refused("run's own folder")
    cli("export", run, "--format", "timm").refused("exists", "--overwrite")
    assert cli("export", run, "--format", "timm", "--overwrite").code == 0


def test_int8_is_calibrated_and_measured_beside_float32(cli: Cli, data: Path, tmp_path: Path) -> None:
    _, weights = write(tmp_path, "cnn")
    file = tmp_path / "student.onnx"
    outcome = cli(
        "export", weights, "--format", "onnx", "--output", file, "--data", data, "--int8", "--workers", "0", "--json"
    )
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)["int8"]
    assert result["images"] == 6
    assert abs(result["top1"] - result["float32_top1"]) < 40
    assert result["size_ratio"] < 1
    small, full = OnnxClassifier(tmp_path / "student.int8.onnx"), OnnxClassifier(file)
    assert small.classes == CLASSES
    kinds = {node.op_type for node in onnx.load(tmp_path / "student.int8.onnx").graph.node}
    assert "QuantizeLinear" in kinds
    images = torch.rand(4, 3, 32, 32)
    assert not torch.equal(small(images), full(images))
    torch.testing.assert_close(small(images), full(images), rtol=0.2, atol=0.2)


def test_wrong_input_is_refused_in_a_line(
    cli: Cli, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, weights = write(tmp_path, "cnn")
    out = ("--output", tmp_path / "a.onnx")
    cli("export", weights, "--format", "onnx").refused("output", "--output")
    cli("export", weights, "--format", "onnx", "--output", tmp_path / "a.pt").refused("a.pt", ".onnx")
    cli("export", weights, "--format", "onnx", *out, "--int8").refused("--data")
    cli("export", weights, "--format", "timm", "--opset", "18").refused("--opset", "onnx")
    cli("export", weights, "--format", "onnx", *out, "--push-to-hub", "a/b").refused("push_to_hub", "--format timm")
    cli("export", tmp_path, "--format", "onnx", *out).refused("no run")
    other = tmp_path / "torchvision.safetensors"
    Classifier("torchvision:squeezenet1_1", pretrained=False, num_classes=3).save(other)
    cli("export", other, "--format", "timm", "--output", tmp_path / "t").refused("not a timm model", "--format onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    cli("export", weights, "--format", "onnx", *out).refused("onnxscript is not installed", ".[onnx]")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"architecture": "python:os.system"}, "python:os.system"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "checkpoint_path"),
        ({"architecture": None}, "None"),
        ({"pretrained_cfg": {"input_size": 3}}, "not a timm configuration"),
        ({"pretrained_cfg": {"input_size": [3, 0, 0]}}, "input_size"),
        ({"pretrained_cfg": {"crop_pct": "x"}}, "crop_pct"),
        ({"pretrained_cfg": {"std": [0, 1, 1]}}, "std"),
        ({"label_names": 5}, "label_names"),
        ({"label_names": ["a"]}, "names 1 classes"),
    ],
)
def test_a_folder_may_not_ask_for_code_or_files(cli: Cli, tmp_path: Path, change: dict[str, Any], told: str) -> None:
    _, weights = write(tmp_path, "cnn")
    folder = tmp_path / "folder"
    assert cli("export", weights, "--format", "timm", "--output", folder).code == 0
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    cli("predict", folder, tmp_path / "image.png").refused(str(folder), told)
