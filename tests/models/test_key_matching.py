"""Weights files from other sources: prefixes, authors' own names, other heads or none; and files that are refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from conftest import TINY_CNN
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from scalekd import Student, Teacher
from scalekd.errors import UserError
from scalekd.models import Classifier

State = dict[str, Tensor]
VIT: dict[str, Any] = {"embed_dim": 48, "depth": 3, "num_heads": 2}
SWIN: dict[str, Any] = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}


def cnn(num_classes: int = 7) -> State:
    torch.manual_seed(0)
    state: State = timm.create_model("resnet18", num_classes=num_classes, **TINY_CNN).state_dict()
    return state


def headless(state: State) -> State:
    return {key: tensor for key, tensor in state.items() if not key.startswith("fc.")}


def under(prefix: str, state: State) -> State:
    return {prefix + key: tensor for key, tensor in state.items()}


@pytest.fixture
def written(tmp_path: Path) -> Callable[[State], Path]:
    """Writes tensors to a file without a card."""

    def write(state: State) -> Path:
        path = tmp_path / "weights.safetensors"
        save_file({key: tensor.clone().contiguous() for key, tensor in state.items()}, path)
        return path

    return write


Written = Callable[[State], Path]


def assert_holds(model: Classifier | Student, state: State) -> None:
    """Assert that a model has exactly these weights."""
    own = model.model.state_dict()
    assert own.keys() == state.keys()
    for key, tensor in state.items():
        assert torch.equal(own[key], tensor), key


@pytest.mark.parametrize(
    "prefix",
    ["_orig_mod.", "module.", "model.", "backbone.", "student.", "teacher.", "module._orig_mod.", "net.encoder."],
)
def test_one_prefix_before_every_key_is_left_out_and_said(prefix: str, written: Written) -> None:
    model = Classifier("resnet18", weights=written(under(prefix, cnn())), **TINY_CNN)
    assert_holds(model, cnn())
    assert model.num_classes == 7
    assert model.notes == (f"its keys are read without {prefix!r}",)


def test_files_as_torch_wraps_models(written: Written) -> None:
    """Averaged weights have an update counter; compiled parts of a model have torch's prefix within their keys."""
    averaged = AveragedModel(timm.create_model("resnet18", num_classes=7, **TINY_CNN))
    model = Classifier("resnet18", weights=written(averaged.state_dict()), **TINY_CNN)
    assert_holds(model, {k.removeprefix("module."): t for k, t in averaged.state_dict().items() if k != "n_averaged"})
    compiled = {key.replace("layer1.", "layer1._orig_mod."): tensor for key, tensor in cnn().items()}
    model = Classifier("resnet18", weights=written(compiled), **TINY_CNN)
    assert_holds(model, cnn())
    assert model.notes == ("its keys are read without '_orig_mod'",)


def test_what_the_model_computes_may_be_missing_and_types_may_be_short(written: Written) -> None:
    bare = {key: tensor for key, tensor in cnn().items() if not key.endswith("num_batches_tracked")}
    assert_holds(Classifier("resnet18", weights=written(bare), **TINY_CNN), cnn())
    for dtype in (torch.float16, torch.bfloat16):
        short = {key: t.to(dtype) if t.is_floating_point() else t for key, t in cnn().items()}
        model = Classifier("resnet18", weights=written(short), **TINY_CNN)
        assert_holds(model, {key: t.float() if t.is_floating_point() else t for key, t in short.items()})
        assert model.notes == ()


@pytest.mark.parametrize("layer", ["classifier", "head", "head.fc", "linear", "classifier.1"])
def test_a_head_by_another_name_is_the_head(layer: str, written: Written) -> None:
    own = cnn()
    head = {f"{layer}.{kind}": own[f"fc.{kind}"] for kind in ("weight", "bias")}
    model = Classifier("resnet18", weights=written(under("backbone.", headless(own)) | head), **TINY_CNN)
    assert_holds(model, own)
    assert model.notes == ("its keys are read without 'backbone.'", f"its layer {layer!r} is read as the head 'fc'")


def dinov2(name: str, size: int) -> tuple[State, State]:
    """Return a tiny DINOv2's weights under timm's keys, and under its authors' keys."""
    torch.manual_seed(0)
    own: State = timm.create_model(name, num_classes=0, img_size=size, **VIT).state_dict()
    theirs = own | {"mask_token": torch.zeros(1, 48)}
    if "reg_token" in own:  # the authors' includes the class token's position
        theirs["register_tokens"] = theirs.pop("reg_token")
        theirs["pos_embed"] = torch.cat([torch.zeros(1, 1, 48), own["pos_embed"]], dim=1)
    return own, theirs


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
@pytest.mark.parametrize("prefix", ["", "teacher.backbone."])
def test_dinov2_as_its_authors_release_it(name: str, prefix: str, written: Written) -> None:
    own, theirs = dinov2(name, 56)
    path = written(under(prefix, theirs))
    model = Teacher(name, weights=path, **VIT)
    assert (model.resolution, model.tokens.positions) == (56, 16), "the resolution is that of its position embeddings"
    for key, tensor in own.items():
        assert torch.equal(model.model.state_dict()[key], tensor), key
    assert any("as timm converts them" in note and "mask_token" in note for note in model.notes)
    assert Teacher(name, weights=path, resolution=112, **VIT).tokens.positions == 64


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("num_classes", [2, 1000])
def test_swin_as_its_authors_release_it(prefix: str, num_classes: int, written: Written) -> None:
    torch.manual_seed(0)
    own = timm.create_model("swin_tiny_patch4_window7_224", num_classes=num_classes, **SWIN).state_dict()
    theirs = {
        re.sub(r"layers\.(\d)\.down", lambda m: f"layers.{int(m[1]) - 1}.down", key).replace("head.fc.", "head."): value
        for key, value in own.items()
    }
    theirs |= {f"layers.{i}.blocks.0.attn.relative_position_index": torch.zeros(49, 49).long() for i in range(4)}
    theirs["layers.0.blocks.0.attn_mask"] = torch.zeros(64, 49, 49)
    model = Classifier("swin_tiny_patch4_window7_224", weights=written(under(prefix, theirs)), **SWIN)
    assert_holds(model, own)


def test_torchvisions_files(written: Written) -> None:
    """Under torchvision's own name, and under a timm name with the same keys or a conversion."""
    state = torchvision.models.mobilenet_v3_small(num_classes=5).state_dict()
    maps = ("features.8", "features.12")
    assert Classifier("torchvision:mobilenet_v3_small", weights=written(state)).num_classes == 5
    student = Student("torchvision:mobilenet_v3_small", num_classes=3, maps=maps, resolution=64, weights=written(state))
    assert student.notes == ("head is fresh: the file has 5 classes, the data 3",)
    assert torch.equal(student.model.features[0][0].weight, state["features.0.0.weight"])
    with pytest.raises(
        UserError, match=r"another architecture; .*torchvision's; specify the model as torchvision:NAME"
    ):
        Classifier("mobilenetv3_small_100", weights=written(state))
    resnet = torchvision.models.resnet18(num_classes=5).state_dict()
    assert_holds(Classifier("resnet18", weights=written(resnet)), resnet)


@pytest.mark.parametrize(
    ("state", "note"),
    [
        (cnn(1000), "head is fresh: the file has 1000 classes, the data 3"),
        (headless(cnn()), "head is fresh: the file has none, the data 3"),
        (headless(cnn()) | {"head.0.weight": torch.zeros(8, 16), "head.2.weight": torch.zeros(3, 8)}, "has another"),
        (under("module.", cnn(2)), "head is fresh: the file has 2 classes, the data 3"),
    ],
)
def test_a_start_takes_a_fresh_head_where_the_files_does_not_fit(state: State, note: str, written: Written) -> None:
    student = Student("resnet18", num_classes=3, weights=written(state), resolution=32, **TINY_CNN)
    assert student.num_classes == 3
    assert note in student.notes[-1]
    first = next(tensor for key, tensor in state.items() if key.endswith("conv1.weight"))
    assert torch.equal(student.model.conv1.weight, first), "the rest is the file's"
    assert student.model.fc.weight.any(), "a random head, not zeros"


def test_a_start_without_a_head_to_train_leaves_the_files_out(written: Written) -> None:
    student = Student("resnet18", num_classes=0, weights=written(cnn()), resolution=32, **TINY_CNN)
    assert student.notes == ("the file's head (fc.bias, fc.weight) is left out",)


def test_a_start_keeps_a_head_of_as_many_classes(written: Written) -> None:
    student = Student("resnet18", num_classes=7, weights=written(cnn()), resolution=32, **TINY_CNN)
    assert_holds(student, cnn())
    assert student.notes == ()


def test_a_students_file_with_other_classes_is_a_start(tmp_path: Path, student: Student) -> None:
    student.save(tmp_path / "s.safetensors", ("a", "b", "c"))
    other = Student(tmp_path / "s.safetensors", num_classes=2)
    assert (other.num_classes, other.classes) == (2, ())
    assert other.notes == ("head is fresh: the file has 3 classes, the data 2",)


def test_evaluation_is_strict_about_the_head(written: Written) -> None:
    with pytest.raises(UserError, match=r"2 shapes differ: fc\.bias \[7\] \(model: \[3\]\)"):
        Classifier("resnet18", num_classes=3, weights=written(cnn()), **TINY_CNN)
    assert Classifier("resnet18", weights=written(headless(cnn())), **TINY_CNN).num_classes == 0


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({k: t for k, t in cnn().items() if k != "layer2.0.conv1.weight"}, r"incomplete .* missing: layer2\.0\.conv1"),
        (
            under("model.", cnn()) | under("ema.", cnn()),
            r"2 copies of the model, under 'ema\.' and 'model\.'",
        ),
        (cnn() | under("ema.", cnn()), r"2 copies of the model, under no prefix and 'ema\.'"),
        (
            under("backbone.body.", headless(cnn())) | {"rpn.conv.weight": torch.zeros(2, 2)},
            r"holds the model under 'backbone\.body\.' next to 1 other keys \(rpn\.conv\.weight\); save",
        ),
        (
            under("teacher.backbone.", headless(cnn())) | {"teacher.dino_head.last.weight": torch.zeros(2, 2)},
            r"under 'teacher\.backbone\.' next to 1 other keys",
        ),
        (headless(cnn()) | {"layer1.0.se.fc.weight": torch.zeros(8, 8)}, r"not in the model: layer1\.0\.se\.fc"),
        (timm.create_model("resnet10t", num_classes=7).state_dict(), r"another architecture; .* missing: conv1"),
        (
            {"embeddings.patch_embeddings.projection.weight": torch.zeros(4, 3, 2, 2)},
            r"another architecture; .*its names are Hugging Face transformers'",
        ),
        ({}, "another architecture"),
    ],
)
def test_a_start_refuses_what_is_another_model_and_says_why(state: State, message: str, written: Written) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        Student("resnet18", num_classes=3, weights=written(state), resolution=32, **TINY_CNN)
    assert "\n" not in str(refusal.value)
