from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from conftest import TINY_CNN

from scalekd import Student
from scalekd.errors import UserError
from scalekd.method import MapShape
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


def test_the_papers_maps_and_heads() -> None:
    assert map_indices(ISOTROPIC * 12, "vit")[0] == [8, 11]
    assert map_indices(ISOTROPIC * 8, "mixer")[0] == [5, 7]
    assert map_indices([{"reduction": r} for r in (2, 4, 8, 16, 32)], "resnet")[0] == [3, 4]
    assert paper_heads("swin_large_patch4_window7_224.ms_in22k_ft_in1k") == (16, 24)
    assert paper_heads("swin_base_patch4_window7_224") == (8, 16)
    assert paper_heads("swin_small_patch4_window7_224") == (3, 6)
    assert paper_heads("vit_small_patch14_dinov2") == (8, 8)


def test_one_map_is_too_few() -> None:
    with pytest.raises(UserError, match="two are needed"):
        map_indices(ISOTROPIC, "short")
