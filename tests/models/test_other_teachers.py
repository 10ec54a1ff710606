"""Teachers that are not timm's: any module with named tokens, and the vision models of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import Cli
from torch import Tensor, nn

from scalekd import ScaleKD, Student, Teacher, UserError
from scalekd.models import transformers_models
from scalekd.recipes import load

SMALL: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
DINO: dict[str, Any] = {key: value for key, value in SMALL.items() if key != "intermediate_size"}
SIDE = {"image_size": 64, "patch_size": 16}
TEXT = SMALL | {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}
# Class, settings of its configuration, grid of its tokens, and the modules of its tail.
KINDS: dict[str, tuple[str, dict[str, Any], str, tuple[str, ...]]] = {
    "DINOv2": ("Dinov2Model", DINO | {"image_size": 56, "patch_size": 14}, "4x4x48", ("encoder.layer.2", "layernorm")),
    "DINOv2, registers": ("Dinov2WithRegistersModel", DINO | {"image_size": 56, "patch_size": 14}, "4x4x48", ()),
    "DINOv2, with a head": (
        "Dinov2ForImageClassification",
        DINO | {"image_size": 56, "patch_size": 14, "num_labels": 7},
        "4x4x48",
        ("dinov2.encoder.layer.2", "dinov2.layernorm"),
    ),
    "DINOv3": ("DINOv3ViTModel", SMALL | SIDE | {"num_register_tokens": 4}, "4x4x48", ()),
    "DINOv3 ConvNeXt": (
        "DINOv3ConvNextModel",
        {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "image_size": 64},
        "2x2x48",
        (),
    ),
    "ViT": ("ViTModel", SMALL | SIDE, "4x4x48", ()),
    "SigLIP": ("SiglipModel", {"vision_config": SMALL | SIDE, "text_config": TEXT}, "4x4x48", ()),
    "SigLIP, vision": ("SiglipVisionModel", SMALL | SIDE, "4x4x48", ()),
    "CLIP": ("CLIPModel", {"vision_config": SMALL | SIDE, "text_config": TEXT}, "4x4x48", ()),
    "I-JEPA": ("IJepaModel", SMALL | SIDE, "4x4x48", ()),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of each kind, random weights."""
    transformers = pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("models")
    for kind, (name, settings, _, _) in KINDS.items():
        torch.manual_seed(0)
        cls = getattr(transformers, name)
        cls(cls.config_class(**settings)).save_pretrained(root / kind)
        processor = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
        (root / kind / "preprocessor_config.json").write_text(json.dumps(processor))
    return root


def images(side: int = 72) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_transformers_teaches(folders: Path, kind: str) -> None:
    _, settings, grid, tail = KINDS[kind]
    teacher = Teacher(f"transformers:{folders / kind}", tail=tail)
    assert (str(teacher.tokens), teacher.num_classes) == (grid, settings.get("num_labels", 0))
    torch.testing.assert_close(teacher.mean.flatten(), torch.tensor([0.4, 0.5, 0.6]))
    outputs = teacher(images())
    assert outputs.tokens.shape == (2, teacher.tokens.positions, 48)
    assert (outputs.logits is None) == (teacher.num_classes == 0)
    student = Student("resnet18", num_classes=7, resolution=72, layers=[1, 1, 1, 1], channels=[8, 8, 16, 16])
    method = ScaleKD(teacher, student, tpp=bool(tail), logit_weight=0.5 if teacher.num_classes else 0.0)
    method(images(), torch.tensor([0, 1])).total.backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    larger = Teacher(f"transformers:{folders / kind}", resolution=2 * teacher.resolution)
    assert larger.tokens.positions == 4 * teacher.tokens.positions


def test_it_equals_timms_form_of_the_same_weights(folders: Path) -> None:
    """DINOv2: tokens, and the tail on tokens alone."""
    ours = Teacher(f"transformers:{folders / 'DINOv2'}", tail=("encoder.layer.1", "encoder.layer.2", "layernorm"))
    model = timm.create_model(
        "vit_small_patch14_dinov2", img_size=56, depth=3, embed_dim=48, num_heads=4, num_classes=0
    )
    state, found = ours.model.state_dict(), {}
    for key, value in model.state_dict().items():
        found[key] = _of_transformers(key, value, state)
    model.load_state_dict(found)
    theirs = Teacher(model, resolution=56)
    theirs.mean, theirs.std = ours.mean, ours.std
    torch.testing.assert_close(ours(images()).tokens, theirs(images()).tokens, rtol=1e-5, atol=1e-5)
    tokens = torch.randn(2, 16, 48)
    torch.testing.assert_close(ours.tail(tokens), theirs.tail(tokens), rtol=1e-5, atol=1e-5)


def _of_transformers(key: str, value: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Return the value of timm's parameter from the state of a Dinov2Model."""
    names = {
        "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm",
        "attn.proj": "attention.o_proj", "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1", "norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }  # fmt: skip
    block, _, part = key.removeprefix("blocks.").partition(".") if key.startswith("blocks.") else ("", "", key)
    prefix = f"encoder.layer.{block}." if block else ""
    stem, _, last = part.rpartition(".")
    if stem == "attn.qkv":
        return torch.cat([state[f"{prefix}attention.{name}_proj.{last}"] for name in "qkv"])
    name = names[part] if part in names else f"{names[stem]}.{last}"
    return state[prefix + name].reshape(value.shape)


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(transformers_models, "import_module", missing)
    with pytest.raises(UserError, match=r"pip install 'scalekd\[transformers\]'"):
        Teacher("transformers:facebook/dinov2-small")


def test_what_transformers_cannot_load_is_one_line(folders: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    text = tmp_path / "text"
    transformers.BertModel(transformers.BertConfig(**SMALL, vocab_size=50)).save_pretrained(text)
    with pytest.raises(UserError, match="is a bert, which takes no images"):
        Teacher(f"transformers:{text}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be loaded"):
        Teacher(f"transformers:{tmp_path / 'empty'}")
    headless = tmp_path / "headless"
    transformers.Dinov2Model.from_pretrained(folders / "DINOv2").save_pretrained(headless)
    config = json.loads((headless / "config.json").read_text())
    (headless / "config.json").write_text(json.dumps(config | {"architectures": ["Dinov2ForImageClassification"]}))
    with pytest.raises(UserError, match=r"the weights of .* have no classifier.bias \(2 missing\)"):
        Teacher(f"transformers:{headless}")


class Own(nn.Module):
    """A convolutional network with logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.ReLU())
        self.head = nn.Linear(8, 5)
        self.unused = nn.Linear(8, 8)
        self.block = nn.Linear(8, 8)

    def forward(self, images: Tensor) -> Tensor:
        found = self.body(images).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.block(found).mean(1))
        return logits


def own_teacher() -> nn.Module:
    return Own()


def test_a_module_of_ones_own_teaches_with_its_named_tokens() -> None:
    module = Own()
    teacher = Teacher(module, resolution=64, tokens="block", tail=("block",))
    assert (str(teacher.tokens), teacher.num_classes, teacher.tail_name) == ("8x8x8", 5, "block")
    outputs = teacher(images())
    torch.testing.assert_close(outputs.logits, module(teacher.prepare(images())))
    tokens = module.body(teacher.prepare(images())).flatten(2).transpose(1, 2)
    torch.testing.assert_close(outputs.tokens, module.block(tokens))
    torch.testing.assert_close(teacher.tail(tokens), module.block(tokens))
    assert not teacher.model.training
    assert str(Teacher(module, resolution=64, tokens="body").tokens) == "8x8x8"  # a map


def test_any_model_of_timm_teaches_if_its_tokens_are_named() -> None:
    teacher = Teacher("resnet18", pretrained=False, num_classes=5, resolution=64, tokens="layer4")
    assert (str(teacher.tokens), teacher.num_classes, teacher.tail_name) == ("2x2x512", 5, "")


@pytest.mark.parametrize(
    ("tokens", "tail", "message"),
    [
        ("blok", (), "teacher_tokens: Own has no module 'blok'; did you mean 'block'"),
        ("unused", (), "teacher_tokens: 'unused' is not called in the forward of Own"),
        ("head", (), "teacher_tokens: head of Own gives"),
        ("block", ("blok",), "teacher_tail: Own has no module 'blok'"),
        ("block", ("body",), "teacher_tail: body cannot run on tokens alone"),
        ("block", ("head",), "teacher_tail: head turns tokens"),
    ],
)
def test_wrong_names_are_refused(tokens: str, tail: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        Teacher(Own(), resolution=64, tokens=tokens, tail=tail)


def test_tpp_is_off_without_a_tail() -> None:
    named = {"teacher": "python:own.build", "teacher_tokens": "block"}
    assert not load(None, named).tpp
    assert not load(None, {"teacher": "transformers:facebook/dinov2-small"}).tpp
    assert load(None, named | {"teacher_tail": ("block",)}).tpp
    assert load(None, {"teacher": "vit_tiny_patch16_224"}).tpp


def test_the_command_takes_a_teacher_of_ones_own(
    cli: Cli, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    named = ("--teacher", "python:test_other_teachers.own_teacher", "--teacher-resolution", "64")
    pair = (*named, "--student", "resnet18", "--resolution", "64", "--data", data, "--logit-weight", "0")
    short = ("--epochs", "1", "--batch", "6", "--micro-batch", "6", "--warmup-epochs", "0", "--workers", "0")
    cli("distill", *pair, *short, "--output", tmp_path / "none").refused("teacher_tokens")
    cli("distill", *pair, *short, "--teacher-tokens", "block", "--tpp", "--output", tmp_path / "tpp").refused(
        "tpp: runs"
    )
    outcome = cli("distill", *pair, *short, "--teacher-tokens", "block", "--output", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "no tail is named (teacher_tail), so there is no TPP" in outcome.err
    shown = cli("report", tmp_path / "run")
    assert shown.code == 0, shown.err
