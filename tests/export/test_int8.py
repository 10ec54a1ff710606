"""int8 files agree with the float files in onnxruntime and OpenVINO, for every kind of student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import TINY_CNN, TINY_VIT, Cli, write_images
from torch import Tensor, nn

from scalekd.exports.onnx import OnnxClassifier, export_onnx
from scalekd.exports.quantise import AFTER_CLIPS, CLIPS, INPUTS_ONLY, PRODUCTS, Way, choose_way, quantise
from scalekd.models import Classifier

STUDENTS: dict[str, tuple[str, int, dict[str, Any]]] = {  # architecture, image side, arguments
    "cnn": ("resnet18", 32, TINY_CNN),
    "depthwise": ("mobilenetv1_100", 64, {}),
    "mixer": ("mixer_s16_224", 32, {"img_size": 32}),
    "vit": ("vit_tiny_patch16_224", 64, {"img_size": 64, "depth": 2, "embed_dim": 96, "num_heads": 3}),
}


def images(count: int, side: int, seed: int) -> Tensor:
    """Images of large patches `[count, 3, side, side]`: unlike noise, a random network distinguishes them."""
    patches = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(patches, side, mode="bicubic").clamp(0, 1)


def trained(kind: str) -> Classifier:
    """A student with norm statistics of images and a bias in its patch embedding, as after training."""
    torch.manual_seed(0)
    name, side, arguments = STUDENTS[kind]
    model = Classifier(name, pretrained=False, num_classes=4, resolution=side, **arguments)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                module.weight.uniform_(0.5, 1)
                module.bias.uniform_(0, 1)
        if kind == "vit":
            model.model.patch_embed.proj.bias.normal_(std=0.5)
        model.train()(images(64, side, seed=0))
        if kind != "depthwise":
            nn.init.normal_(model.model.get_classifier().weight, std=0.2)
    return model.eval()


def error(found: Tensor, truth: Tensor) -> float:
    """Root mean square of the difference, divided by the logits' standard deviation between images."""
    return float((found - truth).square().mean().sqrt() / truth.std(0).mean())


def written(model: Classifier, folder: Path, **how: Any) -> tuple[Path, Path]:
    """Export a float file and an int8 file."""
    whole, small = folder / "a.onnx", folder / f"int8-{len(how)}.onnx"
    if not whole.exists():
        export_onnx(model, whole, model.card(), 17)
    quantise(whole, small, torch.split(images(64, model.resolution, seed=0), 16), model.card(), **how)
    return whole, small


@pytest.mark.parametrize(
    "kind", ["cnn", "vit", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("depthwise", "mixer"))]
)
def test_rounding_is_nearer_than_that_of_inputs_and_outputs(tmp_path: Path, kind: str) -> None:
    model = trained(kind)
    asked = images(32, model.resolution, seed=1)
    whole, small = written(model, tmp_path)
    _, both = written(model, tmp_path, way=Way(PRODUCTS, {}))
    truth, ours, theirs = (OnnxClassifier(file)(asked) for file in (whole, small, both))
    assert 0 < error(ours, truth) < (0.9 if kind == "depthwise" else 1.1) * error(theirs, truth)  # ReLU6 gains most


@pytest.mark.parametrize(
    ("operators", "way"),
    [
        ({"Conv", "Relu", "Add"}, AFTER_CLIPS),
        ({"Conv", "Clip", "Gemm"}, AFTER_CLIPS),
        ({"Conv", "Relu", "HardSwish"}, INPUTS_ONLY),
        ({"Conv", "Relu", "Softmax", "MatMul"}, INPUTS_ONLY),
        ({"Conv", "Gemm", "Erf"}, INPUTS_ONLY),
        ({"Conv", "Relu", "Softplus", "Mul"}, INPUTS_ONLY),
        ({"Conv", "Relu", "Attention"}, INPUTS_ONLY),
        ({"Conv", "Gemm"}, INPUTS_ONLY),
    ],
)
def test_values_are_rounded_after_activations_only_if_all_of_them_clip(operators: set[str], way: Way) -> None:
    assert choose_way(operators) is way


@pytest.mark.parametrize(("kind", "outputs"), [("cnn", True), ("depthwise", True), ("mixer", False), ("vit", False)])
def test_outputs_of_products_are_rounded_only_in_plain_cnns(tmp_path: Path, kind: str, outputs: bool) -> None:
    _, small = written(trained(kind), tmp_path)
    nodes = onnx.load(small).graph.node
    products = {output for node in nodes if node.op_type in PRODUCTS for output in node.output}
    rounded = {node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}
    assert bool(products & rounded) is outputs
    clips = {node.input[0] for node in nodes if node.op_type in CLIPS}
    assert not clips & {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}, "rounded after them"


@pytest.mark.parametrize("kind", STUDENTS)
def test_openvino_answers_an_int8_file_as_onnxruntime_does(tmp_path: Path, kind: str) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed: int8 is checked in onnxruntime only")
    model = trained(kind)
    asked = images(32, model.resolution, seed=1)
    whole, small = written(model, tmp_path)
    truth, ours = OnnxClassifier(whole)(asked), OnnxClassifier(small)(asked)
    compiled = openvino.Core().compile_model(str(small), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    theirs = torch.from_numpy(np.array(compiled(asked.numpy())[0]))
    assert error(theirs, truth) < 1.5 * error(ours, truth)


def test_int8_without_images_to_calibrate_on_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    data, weights = tmp_path / "data", tmp_path / "vit.safetensors"
    write_images(data / "val", 2)
    model = Classifier("vit_tiny_patch16_224", pretrained=False, num_classes=3, resolution=32, **TINY_VIT)
    model.save(weights, ("blue", "green", "red"))
    base = ("export", weights, "--format", "onnx", "--int8", "--output", tmp_path / "a.onnx")
    cli(*base).refused("--data")
    cli(*base, "--data", data).refused("train")
    (data / "train").mkdir()
    cli(*base, "--data", data).refused("train")
    for label in ("blue", "green", "red"):
        (data / "train" / label).mkdir()
    cli(*base, "--data", data).refused("train")
    for label in ("blue", "green", "red"):
        (data / "train" / label / "0.png").write_text("not a picture")
    cli(*base, "--data", data).refused("none of 3 images", "train")
    cli(*base, "--data", data, "--opset", "12").refused("opset: --int8 needs 13", "12")
    assert not list(tmp_path.glob("*.onnx"))


def test_an_output_that_cannot_be_written_is_refused_before_anything_is(cli: Cli, tmp_path: Path) -> None:
    weights, folder = tmp_path / "vit.safetensors", tmp_path / "a.onnx"
    Classifier("vit_tiny_patch16_224", pretrained=False, num_classes=3, resolution=32, **TINY_VIT).save(weights)
    folder.mkdir()
    for overwrite in ((), ("--overwrite",)):
        base = ("export", weights, *overwrite, "--format")
        cli(*base, "onnx", "--output", folder).refused("is a folder", "a.onnx/student.onnx")
        cli(*base, "torch-export", "--output", tmp_path).refused("is a folder", "student.pt2")
        cli(*base, "timm", "--output", weights).refused("is a file; name a folder")
        cli(*base, "onnx", "--output", weights / "a.onnx").refused(f"{weights} is a file")
    assert not list(folder.iterdir())
