"""Teachers that are not timm's: any module with named tokens, and the vision models of transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import CLASSES, TINY_CNN, TINY_RUN, Cli
from torch import Tensor, nn

from scalekd import ScaleKD, Student, Teacher, UserError
from scalekd.models import Classifier, transformers_models
from scalekd.planner import model_cost
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
    "CLIP, with a head": ("CLIPForImageClassification", {"vision_config": SMALL | SIDE, "num_labels": 7}, "4x4x48", ()),
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
    torch.testing.assert_close(teacher.std.flatten(), torch.tensor([0.2, 0.3, 0.4]))
    outputs = teacher(images())
    assert outputs.tokens.shape == (2, teacher.tokens.positions, 48)
    assert (outputs.logits is None) == (teacher.num_classes == 0)
    student = Student("resnet18", num_classes=7, resolution=72, layers=[1, 1, 1, 1], channels=[8, 8, 16, 16])
    method = ScaleKD(teacher, student, tpp=bool(tail), logit_weight=0.5 if teacher.num_classes else 0.0)
    method(images(), torch.tensor([0, 1])).total.backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    if kind == "CLIP, with a head":  # it cannot be told to resample its positions
        return
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
        self.body = nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.ReLU())
        self.head = nn.Linear(16, 5)
        self.unused = nn.Linear(16, 16)
        self.block = nn.Linear(16, 16)

    def forward(self, images: Tensor) -> Tensor:
        found = self.body(images).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.block(found).mean(1))
        return logits


def own_teacher() -> nn.Module:
    torch.manual_seed(0)  # a run and its cache build it once each
    return Own()


class Masked(Own):
    """Drops other positions each time."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images * torch.rand_like(images))


def test_a_module_of_ones_own_teaches_with_its_named_tokens() -> None:
    module = Own()
    teacher = Teacher(module, resolution=64, tokens="block", tail=("block",))
    assert (str(teacher.tokens), teacher.num_classes, teacher.tail_name) == ("8x8x16", 5, "block")
    outputs = teacher(images())
    torch.testing.assert_close(outputs.logits, module(teacher.prepare(images())))
    found = module.body(teacher.prepare(images()))
    tokens = found.flatten(2).transpose(1, 2)
    torch.testing.assert_close(outputs.tokens, module.block(tokens))
    torch.testing.assert_close(teacher.tail(tokens), module.block(tokens))
    assert not teacher.model.training
    of_map = Teacher(module, resolution=64, tokens="body")
    torch.testing.assert_close(of_map(images()).tokens, tokens)


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
        ("block", ("unused",), "teacher_tail: the first of unused is not called in Own"),
        ("block", ("block", "body"), "teacher_tail: block, body cannot run on tokens alone"),
        ("block", ("block", "unused"), "teacher_tail: block, unused do not end with the tokens of block"),
        (None, ("block",), "teacher_tail: is for a teacher with teacher_tokens"),
    ],
)
def test_wrong_names_are_refused(tokens: str | None, tail: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Teacher(Own(), resolution=64, tokens=tokens, tail=tail)


def test_tokens_that_differ_each_time_are_refused() -> None:
    """A masked autoencoder of transformers hides other patches each time."""
    with pytest.raises(UserError, match="gives other tokens each time"):
        Teacher(Masked(), resolution=64, tokens="block")


def test_a_tail_of_transformers_must_be_the_models_last_part(folders: Path) -> None:
    for tail in (("encoder.layer.2",), ("layernorm", "encoder.layer.2"), ("encoder.layer.1", "layernorm")):
        with pytest.raises(UserError, match="do not end with the tokens"):
            Teacher(f"transformers:{folders / 'DINOv2'}", tail=tail)


def test_settings_of_the_image_processor_are_followed_or_named(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "ViT", tmp_path / "vit")
    file = tmp_path / "vit" / "preprocessor_config.json"
    file.write_text(json.dumps({"do_normalize": False, "image_mean": [0.4] * 3, "image_std": [0.2] * 3}))
    assert Teacher(f"transformers:{tmp_path / 'vit'}").std.flatten().tolist() == [1, 1, 1]
    file.write_text(json.dumps({"do_flip_channel_order": True}))
    with pytest.raises(UserError, match="takes images as BGR"):
        Teacher(f"transformers:{tmp_path / 'vit'}")
    file.unlink()
    teacher = Teacher(f"transformers:{tmp_path / 'vit'}")
    assert teacher.notes == ("it states no normalisation: ImageNet's mean and deviation are used",)
    processor = {"image_processor": {"image_mean": [0.1] * 3, "image_std": [0.2] * 3}}
    (tmp_path / "vit" / "processor_config.json").write_text(json.dumps(processor))
    torch.testing.assert_close(Teacher(f"transformers:{tmp_path / 'vit'}").mean.flatten(), torch.full((3,), 0.1))
    with pytest.raises(UserError, match="has no 'trust_remote_code'"):
        Teacher(f"transformers:{tmp_path / 'vit'}", trust_remote_code=True)
    with pytest.raises(UserError, match="can only be teachers"):
        Student(f"transformers:{tmp_path / 'vit'}", num_classes=3)


def test_its_cost_is_counted_at_its_resolution(folders: Path) -> None:
    name = f"transformers:{folders / 'CLIP'}"
    small, large = (model_cost(Teacher(name, resolution=side)).macs for side in (64, 128))
    assert 3 < large / small < 6


def test_tpp_is_off_without_a_tail() -> None:
    named = {"teacher": "python:own.build", "teacher_tokens": "block"}
    assert not load(None, named).tpp
    assert load(None, {"teacher": "python:own.build"}).tpp  # it may be one of timm's
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
    tokens = ("--teacher-tokens", "block")
    cli("distill", *pair, *short, *tokens, "--tpp", "--output", tmp_path / "tpp").refused("tpp: needs the last blocks")
    outcome = cli("distill", *pair, *short, *tokens, "--output", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "no tail is named (teacher_tail), so there is no TPP" in outcome.err
    cached = (*pair, *tokens, "--cache", tmp_path / "cache")
    filled = cli("cache", *cached, "--epochs", "1", "--batch", "6")
    assert filled.code == 0, filled.err
    outcome = cli("distill", *cached, *short, "--output", tmp_path / "cached")
    assert outcome.code == 0, outcome.err
    other = (*pair, "--teacher-tokens", "body", "--cache", tmp_path / "cache")
    cli("distill", *other, *short, "--output", tmp_path / "other").refused("cache")
    shown = cli("report", tmp_path / "run")
    assert shown.code == 0, shown.err


def test_any_classifier_teaches_its_logits(tmp_path: Path, data: Path, cli: Cli) -> None:
    """A ResNet-18 is its own teacher's kind: kd, dist and ofa need no tokens; the other methods do."""
    torch.manual_seed(0)
    teacher = Classifier("resnet18", pretrained=False, num_classes=3, resolution=32, **TINY_CNN)
    teacher.save(tmp_path / "cnn.safetensors", CLASSES)
    pair = ("--teacher", tmp_path / "cnn.safetensors", "--no-check-teacher", "--data", data, *TINY_RUN, "--epochs", "1")
    for method in ("kd", "dist", "ofa"):
        outcome = cli("distill", *pair, "--method", method, "--output", tmp_path / method)
        assert outcome.code == 0, outcome.err
        assert "only its logits are used" in outcome.err
    cli("distill", *pair, "--output", tmp_path / "all").refused("not a vision transformer", "teacher_tokens")
    cached = ("--method", "kd", "--augmentation-epochs", "1", "--cache", tmp_path / "caches")
    assert cli("cache", *pair, *cached).code == 0
    outcome = cli("distill", *pair, *cached, "--output", tmp_path / "cached")
    assert outcome.code == 0, outcome.err
    again = cli("distill", *pair, *cached[:4], "--output", tmp_path / "live")
    assert again.code == 0, again.err
    hashes = [json.loads((tmp_path / run / "result.json").read_text())["sha256"] for run in ("cached", "live")]
    assert hashes[0] == hashes[1]
    report = cli("report", tmp_path / "kd", "--output", tmp_path / "page.html")
    assert report.code == 0, report.err


def test_a_teacher_without_logits_cannot_teach_them() -> None:
    with pytest.raises(UserError, match=r"returns \[1, 8, 8, 8\], not logits"):
        Teacher(nn.Conv2d(3, 8, 4, 4), resolution=32, logits_only=True)
