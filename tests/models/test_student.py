from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import TINY_CNN
from torch import Tensor, nn

from scalekd import ScaleKD, Student, Teacher
from scalekd.errors import UserError
from scalekd.methods.outputs import MapShape
from scalekd.models import Classifier
from scalekd.models.pairing import map_indices, paper_heads

ISOTROPIC = [{"reduction": 16, "num_chs": 8}]


@pytest.mark.parametrize(
    ("name", "resolution", "maps", "stem_norm"),
    [
        ("mobilenetv1_100", 64, ((512, 4, 4), (1024, 2, 2)), "batchnorm"),
        ("resnet18", 64, ((256, 4, 4), (512, 2, 2)), "batchnorm"),
        ("convnext_atto", 64, ((160, 4, 4), (320, 2, 2)), "layernorm2d"),
        ("vit_tiny_patch16_224", 64, ((192, 4, 4), (192, 4, 4)), "batchnorm"),
        ("mixer_s32_224", 64, ((512, 2, 2), (512, 2, 2)), "batchnorm"),
        ("swin_tiny_patch4_window7_224", 224, ((384, 14, 14), (768, 7, 7)), "batchnorm"),
    ],
)
def test_maps_and_logits_come_from_one_forward(
    name: str, resolution: int, maps: tuple[tuple[int, int, int], ...], stem_norm: str
) -> None:
    student = Student(name, num_classes=4, resolution=resolution).eval()
    images = torch.rand(2, 3, resolution, resolution)
    assert student.maps == tuple(MapShape(*shape) for shape in maps)
    assert student.stem_norm == stem_norm
    outputs = student(images)
    assert outputs.previous.shape[1:] == maps[0]
    assert outputs.last.shape[1:] == maps[1]
    torch.testing.assert_close(outputs.logits, student.model(student.prepare(images)), rtol=1e-4, atol=1e-5)


def test_saved_weights_are_plain_timms(tmp_path: Path, student: Student) -> None:
    student.eval().save(tmp_path / "student.safetensors")
    plain = timm.create_model(
        "resnet18", num_classes=3, checkpoint_path=str(tmp_path / "student.safetensors"), **TINY_CNN
    ).eval()
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(plain(student.prepare(images)), student(images).logits)


def test_images_are_resized_in_silence_only_where_the_size_was_asked_for() -> None:
    images = torch.rand(1, 3, 48, 40)
    with pytest.warns(
        UserWarning, match=r"images of 48x40 pixels are resized to the 224 that resnet18 .*resolution=40"
    ):
        Student("resnet18", num_classes=3, **TINY_CNN)(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Student("resnet18", num_classes=3, resolution=32, **TINY_CNN)(images)
        Student("resnet18", num_classes=3, **TINY_CNN)(torch.rand(1, 3, 224, 224))


def test_the_papers_maps_and_heads() -> None:
    assert map_indices(ISOTROPIC * 12, "vit")[0] == [8, 11]
    assert map_indices(ISOTROPIC * 8, "mixer")[0] == [5, 7]
    assert map_indices(ISOTROPIC * 3, "small")[0] == [1, 2]
    assert map_indices(ISOTROPIC * 2, "smallest")[0] == [0, 1]
    assert map_indices([{"reduction": r} for r in (2, 4, 8, 16, 32)], "resnet")[0] == [3, 4]
    assert paper_heads("swin_large_patch4_window7_224.ms_in22k_ft_in1k") == (16, 24)
    assert paper_heads("swin_base_patch4_window7_224") == (8, 16)
    assert paper_heads("swin_small_patch4_window7_224") == (3, 6)
    assert paper_heads("vit_small_patch14_dinov2") == (8, 8)


def test_one_map_is_too_few() -> None:
    with pytest.raises(UserError, match=r"has 1 feature map.*student_maps"):
        map_indices(ISOTROPIC, "short")


class Own(nn.Module):
    """A user's own model with maps, channels-last maps, tokens with a class token, and other outputs."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 4, 4)
        self.second = nn.Conv2d(6, 8, 2, 2)
        self.swap = Lambda(lambda x: x.permute(0, 2, 3, 1))
        self.tokens = Lambda(lambda x: torch.cat([x.mean((2, 3))[:, None], x.flatten(2).transpose(1, 2)], dim=1))
        self.ragged = Lambda(lambda x: x.flatten(2)[..., :30].transpose(1, 2))
        self.pair = Lambda(lambda x: (x, x))
        self.unused = nn.Identity()
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        for part in (self.swap, self.tokens, self.ragged, self.pair):
            part(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize("last", ["second", "swap", "tokens"])
def test_any_module_is_a_student_when_its_maps_are_named(last: str, teacher: Teacher) -> None:
    """`swap` gives channels-last maps, `tokens` a class token before the grid's; both are the map of `second`."""
    torch.manual_seed(0)
    student = Student(Own(), maps=("first", last), resolution=96)
    assert [str(shape) for shape in student.maps] == ["24x24x6", "12x12x8"]
    assert student.num_classes == 4
    outputs = student(torch.rand(2, 3, 96, 96))
    torch.testing.assert_close(outputs.last, student.model.second(outputs.previous))
    assert not any(module._forward_hooks for module in student.modules()), "no hooks are left behind"
    losses = ScaleKD(teacher, student)(torch.rand(2, 3, 96, 96), torch.tensor([0, 1]))
    losses.total.backward()
    assert all(p.grad is not None for p in student.parameters())


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (("first", "secnd"), "has no module 'secnd'; did you mean 'second'"),
        (("first", "head"), r"'head' of Own gives \[1, 4\]: it must give maps"),
        (("first", "ragged"), r"'ragged' of Own gives \[1, 30, 8\]"),
        (("first", "pair"), "'pair' of Own gives a tuple"),
        (("first", "unused"), "'unused' is not called in the forward"),
        (("first",), "two are needed"),
        (None, r"specify the two modules of Own .*: first \(16x16x6\), tokens \(8x8x8\)"),
    ],
)
def test_maps_that_cannot_be_are_named(maps: tuple[str, ...] | None, message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        Student(Own(), maps=maps, resolution=64)
    assert "\n" not in str(refusal.value)


def test_a_module_without_logits_is_refused() -> None:
    with pytest.raises(UserError, match=r"must give logits \[B, K\], not \[1, 6, 16, 16\]"):
        Student(nn.Sequential(nn.Conv2d(3, 6, 4, 4)), maps=("0", "0"), resolution=64)


def test_timms_maps_may_be_chosen_by_index_or_by_module() -> None:
    by_index = Student("resnet18", num_classes=3, resolution=64, maps=(2, 4)).eval()
    assert [str(shape) for shape in by_index.maps] == ["8x8x128", "2x2x512"]
    by_name = Student(by_index.model, maps=("layer2", "layer4"), resolution=64).eval()
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(by_name(images).previous, by_index(images).previous)
    torch.testing.assert_close(by_name(images).logits, by_index(images).logits)
    with pytest.raises(UserError, match="4 does not come before 2; specify the earlier map first"):
        Student("resnet18", maps=(4, 2))
    with pytest.raises(UserError, match="smaller grid than S_last"):
        Student("resnet18", maps=("layer4", "layer2"))
    with pytest.raises(UserError, match="resolution: test_vit cannot run on images of 8 pixels"):
        Student("test_vit", resolution=8)
    with pytest.raises(UserError, match="resnet18 has no map 7; its maps are 0 to 4"):
        Student("resnet18", maps=(2, 7))


@pytest.mark.parametrize(
    ("name", "maps", "shapes"),
    [
        ("resnet18", ("layer3", "layer4"), ["4x4x256", "2x2x512"]),
        ("mobilenet_v3_small", ("features.8", "features.12"), ["4x4x48", "2x2x576"]),
        ("swin_t", ("features.5", "features.7"), ["4x4x384", "2x2x768"]),
        ("vit_b_32", ("encoder.layers.encoder_layer_8", "encoder.ln"), ["2x2x768", "2x2x768"]),
    ],
)
def test_torchvisions_models_are_students(name: str, maps: tuple[str, str], shapes: list[str], tmp_path: Path) -> None:
    args: dict[str, Any] = {"image_size": 64} if name.startswith("vit") else {}
    student = Student(f"torchvision:{name}", num_classes=3, maps=maps, resolution=64, **args).eval()
    assert [str(shape) for shape in student.maps] == shapes
    assert student.num_classes == 3
    student.save(tmp_path / "student.safetensors")
    loaded = Classifier(tmp_path / "student.safetensors").eval()
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(loaded(images), student(images).logits)


def test_own_code_is_a_student_by_its_path_and_never_by_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_models.py").write_text(
        "from torch import nn\n"
        "def small(num_classes, width=6):\n"
        "    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.Conv2d(width, width, 2, 2), pool)\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    student = Student("python:own_models.small", num_classes=3, width=8, maps=("0", "1"), resolution=32)
    assert [str(shape) for shape in student.maps] == ["8x8x8", "4x4x8"]
    student.save("student.safetensors")
    again = Student("python:own_models.small", weights="student.safetensors", maps=("0", "1"))
    assert (again.num_classes, again.resolution, str(again.maps[1])) == (3, 32, "4x4x8")
    with pytest.raises(UserError, match=r"belongs to python:own_models\.small; pass it together with that name"):
        Student("student.safetensors", maps=("0", "1"))
    for name, message in (
        ("python:own_models.tiny", "cannot be imported"),
        ("python:other_models.small", "cannot be imported"),
        ("python:small", "cannot be imported"),
        ("python:own_models.number", "cannot be built"),
        ("python:builtins.dict", "returned a dict, not a torch.nn.Module"),
        ("torchvision:resnet51", "did you mean 'resnet"),
    ):
        with pytest.raises(UserError, match=message):
            Student(name, num_classes=3, maps=("0", "1"))


# One model of each kind of design; docs/coverage.md covers all of timm.
SAMPLE = {
    "mobilenetv3_small_050": 64,
    "efficientnet_lite0": 64,
    "regnetx_002": 64,
    "densenet121": 64,
    "convnext_atto": 64,
    "repvit_m0_9": 64,
    "mixer_s32_224": 64,
    "gmlp_ti16_224": 64,
    "vit_tiny_patch16_224": 64,
    "xcit_nano_12_p8_224": 64,
    "swinv2_tiny_window8_256": 64,
    "test_coatnet": 160,
}


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_timm_learns_and_stays_plain_timm(name: str, teacher: Teacher, tmp_path: Path) -> None:
    torch.manual_seed(0)
    size = SAMPLE[name]
    student = Student(name, num_classes=3, resolution=size)
    losses = ScaleKD(teacher, student).train()(torch.rand(2, 3, size, size), torch.tensor([0, 1]))
    losses.total.backward()
    for key, parameter in student.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
    student.eval().save(tmp_path / "student.safetensors")
    plain = timm.create_model(
        name, num_classes=3, checkpoint_path=str(tmp_path / "student.safetensors"), **student.model_args
    ).eval()
    images = student.prepare(torch.rand(2, 3, size, size))
    torch.testing.assert_close(plain(images), student.model(images))
