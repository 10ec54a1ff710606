from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import TINY_VIT
from safetensors.torch import load_file, save_file
from torch import nn

from scalekd import Student, Teacher
from scalekd.errors import UserError
from scalekd.models import Classifier
from scalekd.models.teacher import resolution_note
from scalekd.models.weights import read_weights

SWIN: dict[str, Any] = {"depths": (1, 1, 1, 2), "embed_dim": 16, "num_heads": (1, 2, 2, 4)}
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def swin() -> Teacher:
    return Teacher("swin_tiny_patch4_window7_224", pretrained=False, num_classes=3, resolution=224, **SWIN)


def vit(**args: Any) -> Teacher:
    options = TINY_VIT | {"img_size": 64} | args
    return Teacher("vit_tiny_patch16_224", pretrained=False, num_classes=3, resolution=64, **options)


def tail_input(teacher: Teacher, images: torch.Tensor, index: int) -> torch.Tensor:
    """Return the teacher's own tokens at the start of its tail."""
    maps = teacher.model.forward_intermediates(teacher.prepare(images), indices=[index], intermediates_only=True)
    tokens: torch.Tensor = maps[0].flatten(2).transpose(1, 2)
    return tokens


@pytest.mark.parametrize(
    ("teacher", "index"),
    [
        (swin(), 2),
        (vit(class_token=False, global_pool="avg"), 0),
        (vit(class_token=False, global_pool="avg", fc_norm=True), 0),
    ],
)
def test_its_own_tokens_through_the_tail_are_its_final_tokens(teacher: Teacher, index: int) -> None:
    tokens = tail_input(teacher, IMAGES, index)
    assert tokens.shape[1:] == (teacher.tail_input.positions, teacher.tail_input.channels)
    torch.testing.assert_close(teacher.tail(tokens), teacher(IMAGES).tokens, rtol=1e-4, atol=1e-5)


def test_with_a_class_token_the_tail_works_on_patch_tokens_only() -> None:
    teacher = vit()
    tokens = tail_input(teacher, IMAGES, 0)
    out = teacher.tail(tokens)
    assert out.shape == teacher(IMAGES).tokens.shape == (2, 64, 32)
    model = teacher.model
    torch.testing.assert_close(out, model.norm(model.blocks[2](model.blocks[1](tokens))))


def test_logits_and_tokens_are_the_models_own() -> None:
    for teacher in (swin(), vit()):
        outputs = teacher(IMAGES)
        assert outputs.logits is not None
        torch.testing.assert_close(outputs.logits, teacher.model(teacher.prepare(IMAGES)))
        assert outputs.tokens.shape == (2, teacher.tokens.positions, teacher.tokens.channels)


def test_it_stays_frozen_and_in_eval_mode_whatever_a_parent_does() -> None:
    teacher = vit()
    nn.ModuleList([teacher]).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher(IMAGES).tokens.requires_grad


def test_it_sees_its_own_resolution_and_normalisation() -> None:
    teacher = vit()
    prepared = teacher.prepare(torch.rand(2, 3, 40, 40))
    assert prepared.shape[-2:] == (64, 64)
    mean = torch.tensor(teacher.model.pretrained_cfg["mean"]).view(3, 1, 1)
    torch.testing.assert_close(teacher.prepare(mean.expand(1, 3, 64, 64)), torch.zeros(1, 3, 64, 64))


def test_held_weights_change_nothing_under_autocast() -> None:
    for make in (swin, vit):
        torch.manual_seed(0)
        full = make()
        torch.manual_seed(0)
        held = make().hold_weights(torch.bfloat16)
        tokens = torch.randn(2, full.tail_input.positions, full.tail_input.channels)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(full(IMAGES).tokens, held(IMAGES).tokens)
            assert torch.equal(full.tail(tokens), held.tail(tokens))


def test_a_weights_file_alone_rebuilds_the_teacher(teacher_file: Path, teacher: Teacher) -> None:
    assert teacher.classes == ("blue", "green", "red")
    again = Teacher("vit_tiny_patch16_224", weights=teacher_file)
    torch.testing.assert_close(again(IMAGES).tokens, teacher(IMAGES).tokens)


def test_weights_at_another_resolution_are_resampled(teacher_file: Path) -> None:
    larger = Teacher(teacher_file, resolution=64)
    assert larger.tokens.positions == 64
    assert larger(IMAGES).tokens.shape == (2, 64, 32)


def test_a_module_is_known_by_its_architecture_and_taken_as_it_is() -> None:
    module = timm.create_model("swin_small_patch4_window7_224", **SWIN)
    assert Teacher(module).heads == (3, 6)
    with pytest.raises(UserError, match="used as is"):
        Teacher(module, num_classes=3)


def test_a_tag_does_not_make_another_architecture(teacher_file: Path) -> None:
    assert Teacher("vit_tiny_patch16_224.augreg_in21k_ft_in1k", weights=teacher_file).num_classes == 3
    with pytest.raises(UserError, match="holds a vit_tiny_patch16_224, not a vit_small"):
        Teacher("vit_small_patch16_224", weights=teacher_file)


def test_a_model_whose_tokens_are_not_known_is_refused() -> None:
    with pytest.raises(UserError, match=r"not a vision transformer.*teacher_tokens"):
        Teacher("resnet18", pretrained=False)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'vit_tiny_patch16_224'"):
        Teacher("vit_tiny_patch16_225", pretrained=False)


def test_tail_blocks_beyond_the_model_are_refused() -> None:
    with pytest.raises(UserError, match="tail_blocks"):
        Teacher("vit_tiny_patch16_224", pretrained=False, tail_blocks=13)


def test_foreign_weights_say_which_keys(tmp_path: Path) -> None:
    path = tmp_path / "resnet.safetensors"
    save_file(timm.create_model("resnet10t", num_classes=3).state_dict(), path)
    with pytest.raises(UserError, match=r"another architecture; .* missing: .*blocks\.0.* not in the model: bn1"):
        Teacher("vit_tiny_patch16_224", weights=path)
    with pytest.raises(UserError, match="does not say which model"):
        Teacher(path)


def test_weights_of_another_size_say_which_shapes(tmp_path: Path, teacher_file: Path) -> None:
    path = tmp_path / "plain.safetensors"
    save_file(load_file(teacher_file), path)
    with pytest.raises(UserError, match=r"shapes differ: blocks\.0.*\[32\] \(model: \[192\]\)"):
        Teacher("vit_tiny_patch16_224", weights=path, resolution=32, depth=3, patch_size=8)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), path)
    with pytest.raises(UserError, match="pickle files"):
        Teacher("vit_tiny_patch16_224", weights=path)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        Teacher("vit_tiny_patch16_224", weights=tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="no such file"):
        Teacher(tmp_path / "none.safetensors")


def test_a_classifier_and_a_student_load_what_the_other_saved(tmp_path: Path, student: Student) -> None:
    digest = student.eval().save(tmp_path / "s.safetensors", ("a", "b", "c"))
    loaded = Classifier(tmp_path / "s.safetensors").eval()
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded(images), student(images).logits)
    assert loaded.classes == ("a", "b", "c")
    assert student.save(tmp_path / "again.safetensors", ("a", "b", "c")) == digest, "equal weights, equal hash"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"args": {"checkpoint_path": "aux.pth"}}, "wants to set checkpoint_path"),
        ({"args": {"pretrained_cfg": {"url": "http://x"}}}, "wants to set pretrained_cfg"),
        ({"architecture": "local-dir:/tmp/model"}, "pass it together with that name as the model"),
        ({"architecture": "hf-hub:someone/model"}, "pass it together with that name as the model"),
        ({"architecture": "python:os.system"}, "pass it together with that name as the model"),
        ({"architecture": "torchvision:no_such"}, "pass it together with that name as the model"),
    ],
)
def test_a_weights_file_cannot_have_code_run_or_anything_fetched(
    tmp_path: Path, teacher_file: Path, change: dict[str, Any], message: str
) -> None:
    state, card = read_weights(teacher_file)
    assert card is not None
    path = tmp_path / "evil.safetensors"
    save_file(state, path, metadata={"scalekd": json.dumps(asdict(card) | change)})
    with pytest.raises(UserError, match=message):
        Classifier(path)


def test_weights_without_a_card_say_their_resolution_by_their_positions(tmp_path: Path) -> None:
    """A plain timm file trained at 112 px is not stretched to the architecture's 518."""
    args: dict[str, Any] = {"depth": 2, "embed_dim": 32, "num_heads": 2}
    path = tmp_path / "plain.safetensors"
    trained = timm.create_model("vit_small_patch14_dinov2", img_size=112, num_classes=3, **args)
    save_file(trained.state_dict(), path)
    teacher = Teacher("vit_small_patch14_dinov2", weights=path, **args)
    assert (teacher.resolution, str(teacher.tokens), teacher.num_classes) == (112, "8x8x32", 3)
    torch.testing.assert_close(teacher.model.pos_embed, trained.pos_embed, check_stride=False)
    assert Teacher("vit_small_patch14_dinov2", weights=path, resolution=56, **args).resolution == 56


def test_a_default_resolution_that_costs_much_is_told(teacher: Teacher) -> None:
    small: dict[str, Any] = {"depth": 2, "embed_dim": 32, "num_heads": 2}
    dino = Teacher("vit_small_patch14_dinov2", pretrained=False, **small)
    note = resolution_note(dino, "--teacher-resolution")
    assert note is not None
    assert "518 px" in note
    assert "1,369 tokens an image, 5.3 times as many as at 224 px" in note
    assert "--teacher-resolution 224 takes less" in note
    chosen = Teacher("vit_small_patch14_dinov2", pretrained=False, resolution=518, **small)
    usual = Teacher("vit_tiny_patch16_224", pretrained=False)
    assert [resolution_note(model, "--resolution") for model in (chosen, usual, teacher)] == [None] * 3
