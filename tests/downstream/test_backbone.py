from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import TINY_VIT
from torch import Tensor

from scalekd.errors import UserError
from scalekd.models import Classifier
from scalekd.tasks.transfer.backbone import Backbone

TINY_RESNET: dict[str, Any] = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
TINY_SWIN: dict[str, Any] = {"depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 1, 2, 2)}
TINY_MIXER: dict[str, Any] = {"img_size": 48, "patch_size": 16, "num_blocks": 4, "embed_dim": 16}
PAIRS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("resnet18", TINY_RESNET),
    ("swin_tiny_patch4_window7_224", TINY_SWIN),
    ("vit_tiny_patch16_224", TINY_VIT),
    ("mixer_b14_224", TINY_MIXER),
)


def build(name: str, **arguments: Any) -> Backbone:
    torch.manual_seed(0)
    return Backbone(name, pretrained=False, **arguments).eval()


def sides(maps: list[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(features.shape[2:]) for features in maps]


@pytest.mark.parametrize(("name", "args"), PAIRS)
def test_any_image_gives_four_maps_and_every_weight_a_gradient(name: str, args: dict[str, Any]) -> None:
    backbone = build(name, **args).train()
    maps = backbone(torch.rand(2, 3, 70, 96))
    assert backbone.strides == [4, 8, 16, 32]
    assert sides(maps) == [(24, 24), (12, 12), (6, 6), (3, 3)]  # of 96x96: the next multiples of 32
    assert [features.shape[1] for features in maps] == backbone.channels
    torch.stack([features.square().mean() for features in maps]).sum().backward()  # type: ignore[no-untyped-call]
    assert [key for key, weight in backbone.named_parameters() if weight.grad is None] == []


def test_the_maps_are_those_of_the_weights_in_the_file_or_folder(tmp_path: Path) -> None:
    model = Classifier("resnet18", pretrained=False, num_classes=3, **TINY_RESNET)
    model.save(tmp_path / "student.safetensors")
    images = torch.rand(1, 3, 64, 64)
    _, own = model.eval().model.forward_intermediates((images - model.mean) / model.std, indices=[1, 2, 3, 4])
    for source in (tmp_path / "student.safetensors", tmp_path):
        backbone = Backbone(source).eval()
        assert backbone.file == tmp_path / "student.safetensors"
        torch.testing.assert_close(backbone(images), own)


def test_a_vits_positions_are_resampled_to_the_image(teacher_file: Path) -> None:
    backbone = Backbone(teacher_file, spread=False).eval()  # trained at 32 pixels: 4x4 patches
    own = timm.create_model("vit_tiny_patch16_224", **(TINY_VIT | {"img_size": 64}))
    weights = {k: v for k, v in backbone.model.state_dict().items() if k in own.state_dict()}
    adapt = timm.models.vision_transformer.checkpoint_filter_fn
    own.load_state_dict(adapt(weights, own), strict=False)
    images = torch.rand(1, 3, 64, 64)
    prepared = (images - backbone.mean) / backbone.std
    maps = own.eval().forward_intermediates(prepared, indices=[2], intermediates_only=True)
    torch.testing.assert_close(backbone(images)[1], maps[0], rtol=1e-4, atol=1e-5)


def test_four_depths_or_the_last_one() -> None:
    images = torch.rand(1, 3, 32, 32)
    for spread, changed in ((False, [True] * 4), (True, [False, False, False, True])):
        backbone = build("vit_tiny_patch16_224", spread=spread, **(TINY_VIT | {"depth": 4}))
        before = backbone(images)
        with torch.no_grad():
            backbone.model.blocks[-1].mlp.fc2.bias.add_(1)
        after = backbone(images)
        assert [not torch.equal(a, b) for a, b in zip(before, after, strict=True)] == changed


def test_a_mixer_sees_tiles_of_its_size() -> None:
    backbone = build("mixer_b14_224", **TINY_MIXER)
    tile = torch.rand(1, 3, 48, 48)
    alone = backbone(tile)[2][..., :3, :3]
    whole = backbone(tile.repeat(1, 1, 2, 2))[2]
    torch.testing.assert_close(whole[..., :3, :3], alone)
    torch.testing.assert_close(whole[..., 3:6, 3:6], alone)


def test_patches_can_be_resampled_to_a_stride_that_fits(tmp_path: Path) -> None:
    args = TINY_VIT | {"img_size": 56, "patch_size": 14}
    Classifier("vit_tiny_patch16_224", pretrained=False, **args).save(tmp_path / "vit.safetensors")
    with pytest.raises(UserError, match=r"have strides 14; needed are .*patch_size: 16"):
        Backbone(tmp_path / "vit.safetensors")
    assert sides(Backbone(tmp_path / "vit.safetensors", patch_size=16)(torch.rand(1, 3, 64, 64)))[2] == (4, 4)


def test_what_gives_no_pyramid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="have strides 2, 4, 8; needed are"):
        build("resnet18", output_stride=8, **TINY_RESNET)
    with pytest.raises(UserError, match="use one of timm"):
        build("torchvision:resnet18")
    with pytest.raises(UserError, match="holds no weights"):
        Backbone(tmp_path)


def test_swins_last_stage_looks_across_its_windows() -> None:
    """At 224 px the map is a single window; larger images have several, which must exchange information."""
    backbone = build("swin_tiny_patch4_window7_224", **(TINY_SWIN | {"depths": (1, 1, 1, 2)}))
    images = torch.rand(1, 3, 448, 448)
    corner = images.clone()
    corner[..., :32, :32] = 0  # one cell of the last map
    changed = (backbone(images)[3] - backbone(corner)[3]).abs().amax(dim=(0, 1)) > 1e-6
    assert changed[:7, :7].any()
    assert changed[7:, :].any()


def test_maps_of_models_with_layer_norms_are_normalised() -> None:
    for name, args in PAIRS[:2]:
        maps = build(name, **args)(10 * torch.rand(1, 3, 64, 64))
        scales = [float(features.detach().std(1, correction=0).mean()) for features in maps]
        assert all(abs(scale - 1) < 0.05 for scale in scales) == (name != "resnet18"), name
