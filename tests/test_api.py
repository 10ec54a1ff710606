"""The functions do what the commands do, and take modules and data sets too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from conftest import TINY_CNN, TINY_KEYS, Cli
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import scalekd
from scalekd.data.sources.objects import as_picture

KEYS = {key: value for key, value in TINY_KEYS.items() if not key.startswith("student")} | {"seed": 3}


class Net(nn.Module):
    """A student of one's own, with two maps that have names."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 2, 2)
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.second(self.first(x))
        return self.head(maps.mean((2, 3)))  # type: ignore[no-any-return]


class Pictures(torch.utils.data.Dataset[Any]):
    """Images of a folder as tensors; the labels are in the items only."""

    def __init__(self, folder: Path) -> None:
        self.inner = torchvision.datasets.ImageFolder(str(folder))

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.inner[index]
        return torchvision.transforms.functional.pil_to_tensor(image), label


class Broken:
    """A data set with a fault in its own code."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        raise KeyError("lost")


SAME = [(Image.new("RGB", (8, 8)), 0)]


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def losses(run: scalekd.api.Distilled) -> list[float]:
    return [line["train/loss"] for line in run.curves if "train/loss" in line]


def test_a_call_trains_as_the_command_does(
    cli: Cli, data: Path, teacher_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    named: dict[str, Any] = {"teacher": teacher_file, "student": "resnet18", "student_args": TINY_CNN, "data": data}
    done = scalekd.distill(**named, output=tmp_path / "call", quiet=True, **KEYS)
    assert capfd.readouterr() == ("", "")
    recipe = tmp_path / "call" / "recipe.yaml"
    assert cli("distill", "--recipe", recipe, "--output", tmp_path / "command").code == 0
    there = json.loads((tmp_path / "command" / "result.json").read_text())
    assert done.result["sha256"] == there["sha256"]
    assert (done.top1, done.folder, done.weights) == (there["top1"], tmp_path / "call", done.folder / there["student"])
    assert len(losses(done)) == 4
    plain = timm.create_model("resnet18", num_classes=3, checkpoint_path=str(done.weights), **TINY_CNN)
    assert equal(state(plain), state(done.student))
    assert not done.student.training
    with pytest.raises(scalekd.UserError, match="finished run"):
        scalekd.distill(**named, output=tmp_path / "call", quiet=True, **KEYS)
    measured = scalekd.evaluate(done.folder)
    assert measured.top1 == pytest.approx(done.top1, abs=1e-3)
    assert measured.images == 6
    (data / "val" / "red" / "broken.png").write_text("no image")
    predicted = scalekd.predict(done.folder, (data / "val" / "red",), top=2)
    assert len(predicted.classes) == 2
    assert [Path(path).name for path in predicted.unreadable] == ["broken.png"]
    found = next(iter(predicted.classes.values()))
    assert {prediction.name for prediction in found} < {"blue", "green", "red"}
    assert found[0].probability > found[1].probability
    exported = scalekd.export(done.folder, format="onnx")
    assert exported.path == done.folder / "export" / "student.onnx"
    assert exported.result["checked"]["top1"] == 100


def test_modules_and_data_sets_train_as_names_and_folders_do(data: Path, teacher_file: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = scalekd.Teacher(teacher_file).model.requires_grad_(True)
    student = timm.create_model("resnet18", num_classes=3, **TINY_CNN)
    start = tmp_path / "start.safetensors"
    save_file(student.state_dict(), start)
    before = state(teacher), state(student)
    train, val = (torchvision.datasets.ImageFolder(str(data / split)) for split in ("train", "val"))
    keys = KEYS | {"logit_weight": 0.0, "teacher_resolution": 32, "quiet": True}
    ours = scalekd.distill(teacher=teacher, student=student, data=(train, val), output=tmp_path / "a", **keys)
    assert equal(before[0], state(teacher)), "the caller's modules are left alone"
    assert equal(before[1], state(student))
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    tensors = (Pictures(data / "train"), Pictures(data / "val"))
    keys["workers"] = 1
    again = scalekd.distill(teacher=teacher, student=student, data=tensors, output=tmp_path / "b", **keys)
    assert equal(state(ours.student), state(again.student)), "however the images are given"
    assert not equal(before[1], state(ours.student)), "it learned"
    own = scalekd.evaluate(ours.student, data=val, resolution=32, crop_fraction=1, batch=6, precision="float32")
    assert own.top1 == pytest.approx(ours.top1, abs=1e-3)
    keys |= {"student_args": TINY_CNN, "student_weights": start}
    named = scalekd.distill(teacher=teacher_file, student="resnet18", data=data, output=tmp_path / "c", **keys)
    assert losses(ours) == pytest.approx(losses(named), rel=1e-5)


def test_a_student_of_ones_own_needs_only_its_maps_named(data: Path, teacher_file: Path, tmp_path: Path) -> None:
    keys = KEYS | {"student_maps": ("first", "second"), "output": tmp_path / "run", "quiet": True}
    done = scalekd.distill(teacher=teacher_file, student=Net(3), data=data, **keys)
    assert isinstance(done.student, Net)
    assert "module:Net" in (done.folder / "recipe.yaml").read_text()
    with pytest.raises(scalekd.UserError, match="module:Net"):
        scalekd.evaluate(done.folder)
    (done.folder / "result.json").unlink()
    resumed = scalekd.distill(teacher=teacher_file, student=Net(3), data=data, resume=True, **keys)
    assert equal(state(resumed.student), state(done.student))


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (
            {"student": Net(4), "student_maps": ("first", "second")},
            "student: Net has 4 classes, not 3; build it for them",
        ),
        ({"student": Net(3), "student_args": {"a": 1}}, "a module is used as is"),
        ({"epoch": 3}, "epoch"),
        ({"devices": 2}, "torchrun"),
        ({"data": "nowhere"}, "nowhere"),
        ({"data": ([], [])}, "no images in list/train"),
        ({"data": ([],)}, "a pair of two different data sets"),
        ({"data": (SAME, SAME)}, "a pair of two different data sets"),
        ({"data": (iter([]), [])}, "pass a map-style data set"),
        ({"data": ([(torch.zeros(3, 8, 8) - 1, 0)], [])}, "without augmentation and normalisation"),
        ({"data": (Broken(), [])}, "Broken/train/0 cannot be read: KeyError: 'lost'"),
        ({"data": ([(Image.new("RGB", (8, 8)), 0)], [])}, "class"),
        ({"data": ([3], [])}, r"list/train/0 is a int; return \(image, label\)"),
        ({"data": ([(SAME[0][0], "cat")], [])}, "no class index as its label"),
    ],
)
def test_wrong_input_is_one_line(data: Path, tmp_path: Path, keys: dict[str, Any], reason: str) -> None:
    usual = KEYS | {"data": data, "student": "resnet18", "method": "none", "output": tmp_path / "run", "quiet": True}
    with pytest.raises(scalekd.UserError, match=reason):
        scalekd.distill(**usual | keys)
    assert not (tmp_path / "run").exists()


def test_a_cache_and_a_data_set_do_not_go_together(teacher_file: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"output": tmp_path / "run", "cache": tmp_path / "caches"}
    with pytest.raises(scalekd.UserError, match="leave cache out"):
        scalekd.distill(teacher=teacher_file, student="resnet18", data=([], []), **keys)


def test_a_teacher_is_adapted_and_its_outputs_are_cached(data: Path, teacher_file: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"data": data, "resolution": 32, "crop_fraction": 1, "workers": 0}
    adapted = scalekd.adapt(teacher_file, output=tmp_path / "teacher", quiet=True, **keys)
    assert adapted.weights.is_file()
    assert scalekd.evaluate(adapted.weights, data=data).top1 == pytest.approx(adapted.top1, abs=1e-3)
    settings = KEYS | {"teacher": adapted.weights, "cache": tmp_path / "caches", "data": data}
    assert scalekd.cache(**settings).parent == tmp_path / "caches"
    done = scalekd.distill(student="resnet18", student_args=TINY_CNN, output=tmp_path / "run", quiet=True, **settings)
    assert done.top1 is not None


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (4, 3), (10, 20, 30)),
        Image.new("RGBA", (4, 3), (10, 20, 30, 255)),
        torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None].expand(3, 3, 4),
        torch.tensor([10, 20, 30])[:, None, None].expand(3, 3, 4) / 255,
        np.full((3, 4, 3), [10, 20, 30], np.uint8),
    ],
)
def test_images_of_any_usual_kind_are_read_without_loss(image: Any) -> None:
    picture = as_picture(image, "a")
    assert (picture.size, picture.mode, picture.getpixel((2, 1))) == ((4, 3), "RGB", (10, 20, 30))


def test_grey_images_become_rgb() -> None:
    for grey in (torch.full((1, 3, 4), 7, dtype=torch.uint8), np.full((3, 4), 7, np.uint8), Image.new("L", (4, 3), 7)):
        assert as_picture(grey, "a").getpixel((0, 0)) == (7, 7, 7)


@pytest.mark.parametrize("image", [torch.full((3, 2, 2), 1.5), torch.zeros(4, 2, 2), "a.png", np.zeros((2, 2, 3))])
def test_other_kinds_of_images_are_refused(image: Any) -> None:
    with pytest.raises(scalekd.UserError, match=r"data: a is a .*; return a PIL image"):
        as_picture(image, "a")


class LateFault(Pictures):
    """A data set whose fifth image is normalised."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = super().__getitem__(index)
        return (image / 255 - 1 if index == 4 else image), label


def test_a_fault_in_a_data_set_ends_the_run_with_its_reason(data: Path, tmp_path: Path) -> None:
    sets = (LateFault(data / "train"), Pictures(data / "val"))
    keys = KEYS | {"student": "test_resnet", "method": "none", "overwrite": True, "quiet": True}
    for workers in (0, 1):
        keys["workers"] = workers
        with pytest.raises(scalekd.UserError, match=r"LateFault/train/4 is a Tensor .* without augmentation"):
            scalekd.distill(data=sets, output=tmp_path / "run", **keys)


def test_a_run_of_a_module_is_not_rebuilt_from_its_name(data: Path, tmp_path: Path) -> None:
    """Weights do not show that its activations are other ones."""
    student = timm.create_model("resnet18", num_classes=3, act_layer="gelu", **TINY_CNN)
    keys = KEYS | {"method": "none", "quiet": True}
    done = scalekd.distill(student=student, data=data, output=tmp_path / "run", **keys)
    with pytest.raises(scalekd.UserError, match=r"module:resnet18 was passed to scalekd\.distill as a module"):
        scalekd.evaluate(done.folder)
    with pytest.raises(scalekd.UserError, match="holds module:resnet18"):
        scalekd.export(done.weights, format="onnx", output=tmp_path / "a.onnx")
    plain = timm.create_model(
        "resnet18", num_classes=3, act_layer="gelu", checkpoint_path=str(done.weights), **TINY_CNN
    )
    assert equal(state(plain), state(done.student)), "the file holds plain weights"


@pytest.mark.parametrize(
    ("function", "arguments", "reason"),
    [
        ("adapt", {"resume": True}, "resume: a probe trains nothing"),
        ("adapt", {"epochs": 3}, "epochs: a probe trains nothing"),
        ("adapt", {"mode": "tune"}, "mode: 'tune' is none of probe, finetune"),
        ("export", {"format": "ONNX"}, "format: 'ONNX' is none of timm, onnx, torch-export"),
        ("export", {"format": "timm", "int8": True}, "format: --int8, --opset and --input uint8 are for onnx"),
    ],
)
def test_functions_refuse_what_the_commands_refuse(
    tmp_path: Path, function: str, arguments: dict[str, Any], reason: str
) -> None:
    with pytest.raises(scalekd.UserError, match=reason):
        getattr(scalekd, function)("resnet18", data="data", output=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_modules_weights_are_its_own(data: Path) -> None:
    with pytest.raises(scalekd.UserError, match="weights: are for a name"):
        scalekd.evaluate(Net(3), weights="a.safetensors", data=data)


def test_another_teacher_module_does_not_resume_a_run(data: Path, teacher_file: Path, tmp_path: Path) -> None:
    teacher = scalekd.Teacher(teacher_file).model
    keys = KEYS | {"logit_weight": 0.0, "student": "resnet18", "student_args": TINY_CNN, "data": data, "quiet": True}
    keys |= {"output": tmp_path / "run"}
    done = scalekd.distill(teacher=teacher, **keys)
    (done.folder / "result.json").unlink()
    with torch.no_grad():
        teacher.cls_token += 1
    with pytest.raises(scalekd.UserError, match="teacher weights changed"):
        scalekd.distill(teacher=teacher, resume=True, **keys)
