"""Each released architecture converts from mmpretrain to timm: strictly at full size, equal logits when tiny."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import mm_models as mm
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import Cli
from torch import Tensor, nn

from scalekd.exports.official import convert, import_checkpoint, merging_order
from scalekd.models import Classifier

Build = Callable[[], nn.Module]

# timm name and arguments, and mmpretrain's module, at the released sizes.
FULL: dict[str, tuple[dict[str, Any], Build]] = {
    "resnet50d": ({}, lambda: mm.Classified(mm.ResNetV1d((3, 4, 6, 3), 64, 64), 2048, 1000)),
    "swin_tiny_patch4_window7_224": (
        {},
        lambda: mm.Classified(mm.Swin(96, (2, 2, 6, 2), (3, 6, 12, 24), 7, (56, 28, 14, 7)), 768, 1000),
    ),
    "vit_small_patch16_224": ({}, lambda: mm.Classified(mm.ViT(384, 12, 6, 14, 16), 384, 1000)),
    "vit_base_patch16_224": ({}, lambda: mm.Classified(mm.ViT(768, 12, 12, 14, 16), 768, 1000)),
    "convnext_tiny": ({}, lambda: mm.Classified(mm.ConvNeXt((3, 3, 9, 3), (96, 192, 384, 768)), 768, 1000)),
    "mixer_s16_224": ({}, lambda: mm.Classified(mm.Mixer(512, 8, 14, 16), 512, 1000)),
    "mixer_b16_224": ({}, lambda: mm.Classified(mm.Mixer(768, 12, 14, 16), 768, 1000)),
    "mixer_b14_224": ({}, lambda: mm.Classified(mm.Mixer(768, 12, 16, 14), 768, 1000)),
    "mobilenetv1_100": ({}, lambda: mm.Classified(mm.MobileNetV1(), 1024, 1000)),
}
# The same families, small enough to run, each with its image side.
TINY: dict[str, tuple[str, dict[str, Any], int, Build]] = {
    "resnet": (
        "resnet50d",
        {"layers": [2, 1, 1, 1], "channels": [8, 16, 32, 64], "stem_width": 4},
        64,
        lambda: mm.Classified(mm.ResNetV1d((2, 1, 1, 1), 8, 8), 256),
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 64, "window_size": 4, "embed_dim": 16, "depths": [1, 1, 1], "num_heads": [1, 2, 4]},
        64,
        lambda: mm.Classified(mm.Swin(16, (1, 1, 1), (1, 2, 4), 4, (16, 8, 4)), 64),
    ),
    "vit": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2},
        32,
        lambda: mm.Classified(mm.ViT(32, 2, 2, 4, 8), 32),
    ),
    "vit with an unused class token": (
        "vit_tiny_patch16_224",
        {
            **{"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2},
            **{"class_token": False, "global_pool": "avg", "fc_norm": False},
        },
        32,
        lambda: mm.Classified(mm.ViT(32, 2, 2, 4, 8, kept=True), 32),
    ),
    "convnext": (
        "convnext_tiny",
        {"depths": [1, 2, 1, 1], "dims": [8, 8, 16, 16]},
        64,
        lambda: mm.Classified(mm.ConvNeXt((1, 2, 1, 1), (8, 8, 16, 16)), 16),
    ),
    "convnext with maps": (
        "convnext_tiny",
        {"depths": [1, 2, 1, 1], "dims": [8, 8, 16, 16]},
        64,
        lambda: mm.Classified(mm.ConvNeXt((1, 2, 1, 1), (8, 8, 16, 16), maps=True), 16),
    ),
    "mixer": ("mixer_s16_224", {"img_size": 64}, 64, lambda: mm.Classified(mm.Mixer(512, 8, 4, 16), 512)),
    "mobilenet": ("mobilenetv1_100", {}, 64, lambda: mm.Classified(mm.MobileNetV1(), 1024)),
}


def randomised(module: nn.Module) -> nn.Module:
    """Make all weights and statistics random, so that no two tensors can be swapped unnoticed."""
    torch.manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "running_var" in name else torch.randn_like(tensor) * 0.2)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):  # large enough that bounded activations (ReLU6) make a difference
            part.weight.data += 1.5
            part.bias.data += 1
    return module.eval()


def distiller_file(path: Path, state: dict[str, Tensor]) -> Path:
    """A file as the authors' trainer writes it: student and other parts, with an optimiser and a log."""
    others = {"teacher.backbone.norm3.weight": torch.zeros(2), "linear.weight": torch.zeros(2, 2)}
    content = {f"student.{key}": value for key, value in state.items()} | others
    torch.save({"meta": {"epoch": 1}, "state_dict": content, "optimizer": {"state": {}}}, path)
    return path


@pytest.mark.parametrize("family", TINY)
def test_a_small_model_computes_the_same_after_import(family: str, tmp_path: Path) -> None:
    name, arguments, side, build = TINY[family]
    reference = randomised(build())
    path = distiller_file(tmp_path / "epoch_300.pth", reference.state_dict())
    imported = import_checkpoint(path, name, **arguments).eval()
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        wanted, found = reference(images), imported.model(images)
    # The Mixers differ in their norms' epsilon, 1e-5 in mmpretrain and 1e-6 in timm.
    torch.testing.assert_close(found, wanted, rtol=2e-3 if family == "mixer" else 1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FULL)
def test_each_released_architecture_is_mapped_to_every_name_and_shape(name: str) -> None:
    arguments, build = FULL[name]
    with torch.device("meta"):
        state = build().state_dict()
        if name.startswith("vit"):
            arguments = {"class_token": False, "global_pool": "avg", "fc_norm": False}
        model = timm.create_model(name, **arguments)
    for key in state:  # the only tensor whose values are checked
        if key.endswith("relative_position_index"):
            state[key] = build_index()
    for key, buffer in list(model.named_buffers()):
        if key.endswith("relative_position_index"):
            parent = model.get_submodule(key.rpartition(".")[0])
            parent.relative_position_index = build_index().view(buffer.shape)
    converted = convert(state, model, "file")
    wanted = model.state_dict()
    assert {key: value.shape for key, value in converted.items()} == {key: v.shape for key, v in wanted.items()}


def build_index() -> Tensor:
    index: Any = mm.WindowMSA(3, 1, 7).relative_position_index
    assert isinstance(index, Tensor)
    return index


def test_the_positions_of_both_sides_have_one_order() -> None:
    attention = timm.create_model("swin_tiny_patch4_window7_224").layers[0].blocks[0].attn
    assert torch.equal(attention.relative_position_index.view(49, 49), build_index())


def test_patch_merging_is_brought_from_unfolds_order_into_timms() -> None:
    torch.manual_seed(0)
    merging = timm.models.swin_transformer.PatchMerging(5, 7)
    weight, scale, grid = torch.randn(7, 20), torch.randn(20), torch.randn(2, 5, 6, 6)
    patches = F.unfold(grid, 2, stride=2).transpose(1, 2)
    wanted = F.linear(F.layer_norm(patches, (20,), scale), weight)
    with torch.no_grad():
        merging.reduction.weight.copy_(merging_order(weight))
        merging.norm.weight.copy_(merging_order(scale))
        found = merging(grid.permute(0, 2, 3, 1)).flatten(1, 2)
    torch.testing.assert_close(found, wanted)


def test_the_command_writes_weights_that_timm_loads(cli: Cli, tmp_path: Path) -> None:
    name, arguments, side, build = TINY["vit"]
    reference = randomised(build())
    path, output = distiller_file(tmp_path / "epoch_300.pth", reference.state_dict()), tmp_path / "vit.safetensors"
    command = ("import", path, "--model", name, "--model-args", str(arguments).replace("'", ""), "--output", output)
    outcome = cli(*command)
    assert outcome.code == 0, outcome.err
    assert "3 classes" in outcome.out
    told = {"class_token": False, "global_pool": "avg", "fc_norm": False}
    plain = timm.create_model(name, num_classes=3, checkpoint_path=output, **arguments, **told).eval()
    images = torch.rand(2, 3, side, side)
    ours = Classifier(output).eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(plain(normalised), reference(normalised), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours(images), plain(normalised))
    cli(*command).refused("exists", "--overwrite")
    cli("import", path, "--model", name, "--output", tmp_path / "vit.pth").refused("output", ".safetensors")


def test_what_does_not_match_is_refused_with_its_keys(cli: Cli, tmp_path: Path) -> None:
    name, arguments, _, build = TINY["vit"]
    state = build().state_dict()
    tiny = ("--model-args", str(arguments).replace("'", ""))

    def run(name: str, content: Any, *more: str) -> Any:
        torch.save(content, tmp_path / "file.pth")
        return cli("import", tmp_path / "file.pth", "--model", name, "--output", tmp_path / "out.safetensors", *more)

    run("resnet18d", state).refused("file.pth", "is not a ResNet", "unknown keys", "backbone.")
    deeper = str(arguments | {"depth": 3}).replace("'", "")
    run(name, state, "--model-args", deeper).refused("belongs to another architecture", "missing", "blocks.2.")
    wider = str(arguments | {"embed_dim": 64}).replace("'", "")
    run(name, state, "--model-args", wider).refused("shapes differ", "[64")
    run(name, state | {"backbone.extra.weight": torch.zeros(1)}, *tiny).refused(
        "1 unknown keys", "backbone.extra.weight"
    )
    run(name, {k: v for k, v in state.items() if k != "head.fc.bias"}, *tiny).refused("1 keys missing", "head.bias")
    run("efficientvit_b0", state).refused("no key map", "ConvNeXt")
    run("resnet51d", state).refused("resnet51d", "did you mean")
    run("resnet50d", {"meta": 1}).refused("file.pth", "no state dict")
    run("resnet50d", [1]).refused("file.pth", "no state dict")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_foreign_order_of_positions_is_refused(cli: Cli, tmp_path: Path) -> None:
    name, arguments, _, build = TINY["swin"]
    state = build().state_dict()
    key = "backbone.stages.0.blocks.0.attn.w_msa.relative_position_index"
    state[key] = state[key].T.contiguous()
    torch.save(state, tmp_path / "file.pth")
    arguments_text = str(arguments).replace("'", "")
    cli(
        *("import", tmp_path / "file.pth", "--model", name, "--model-args", arguments_text),
        *("--output", tmp_path / "out.safetensors"),
    ).refused("relative_position_index", "order of positions")


class Trap:
    def __reduce__(self) -> Any:
        return print, ("code was run",)


def test_a_pickle_that_would_run_code_is_refused(cli: Cli, tmp_path: Path) -> None:
    file, output = tmp_path / "file.pth", tmp_path / "out.safetensors"
    torch.save({"state_dict": {"head.fc.weight": torch.zeros(1)}, "meta": Trap()}, file)
    outcome = cli("import", file, "--model", "resnet50d", "--output", output)
    outcome.refused("file.pth", "weights_only")
    assert "code was run" not in outcome.out
    file.write_bytes(b"nothing")
    cli("import", file, "--model", "resnet50d", "--output", output).refused("file.pth", "weights_only")
    cli("import", tmp_path / "none.pth", "--model", "resnet50d", "--output", output).refused("no such file", "none.pth")


def test_the_log_in_a_trainers_file_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class HistoryBuffer:
        def __init__(self) -> None:
            self._log_history, self._max_length = np.array([0.5, 0.25]), np.int64(3)
            self.statistics_methods = {"mean": self.mean}

        def mean(self) -> float:
            return float(self._log_history.mean())

    module = ModuleType("mmengine.logging.history_buffer")
    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    name, arguments, _, build = TINY["vit"]
    with monkeypatch.context() as patch:
        for part in ("mmengine", "mmengine.logging", module.__name__):
            patch.setitem(sys.modules, part, module)
        content = {"state_dict": build().state_dict(), "message_hub": {"log_scalars": {"loss": HistoryBuffer()}}}
        torch.save(content, tmp_path / "file.pth")
    assert import_checkpoint(tmp_path / "file.pth", name, **arguments).num_classes == 3
