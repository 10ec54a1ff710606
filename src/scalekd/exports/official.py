"""Convert the authors' released weights to timm: map mmpretrain's names, and reorder the tensors that differ."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.convnext import ConvNeXt
from timm.models.efficientnet import EfficientNet
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from scalekd.errors import UserError
from scalekd.exports.checkpoint import read_checkpoint
from scalekd.models import Classifier
from scalekd.models.key_matching import load_weights, stored_resolution
from scalekd.models.sources import create, timm_config

# Prefixes of mmpretrain's names -> timm's. mmpretrain numbers MobileNet's blocks consecutively, timm within stages.
Rules = Mapping[str, str | Callable[[re.Match[str]], str]]
_MOBILENET = tuple((stage, block) for stage, blocks in enumerate((1, 2, 2, 6, 2)) for block in range(blocks))
_MOBILENET_PARTS = {"0": "conv_dw", "1": "bn1", "3": "conv_pw", "4": "bn2"}
_MLP = {"0.0": "fc1", "1": "fc2"}

_RESNET: Rules = {
    r"backbone\.stem\.([01])\.conv\.": lambda m: f"conv1.{3 * int(m[1])}.",
    r"backbone\.stem\.([01])\.bn\.": lambda m: f"conv1.{3 * int(m[1]) + 1}.",
    r"backbone\.stem\.2\.conv\.": "conv1.6.",
    r"backbone\.stem\.2\.bn\.": "bn1.",
    # The D variant pools before each shortcut's convolution. In mmpretrain the first stage, which does not pool, has no
    # module for it, so its indices are shifted by one.
    r"backbone\.layer1\.0\.downsample\.([01])\.": lambda m: f"layer1.0.downsample.{int(m[1]) + 1}.",
    r"backbone\.(?=layer\d)": "",
    r"head\.fc\.": "fc.",
}
_SWIN: Rules = {
    r"backbone\.patch_embed\.projection\.": "patch_embed.proj.",
    r"backbone\.patch_embed\.norm\.": "patch_embed.norm.",
    r"backbone\.stages\.(\d+\.blocks\.\d+)\.attn\.w_msa\.": r"layers.\1.attn.",
    r"backbone\.stages\.(\d+\.blocks\.\d+)\.ffn\.layers\.(0\.0|1)\.": lambda m: f"layers.{m[1]}.mlp.{_MLP[m[2]]}.",
    r"backbone\.stages\.(\d+\.blocks\.\d+)\.norm": r"layers.\1.norm",
    r"backbone\.stages\.(\d+)\.downsample\.": lambda m: f"layers.{int(m[1]) + 1}.downsample.",
    r"backbone\.norm3\.": "norm.",
    r"head\.fc\.": "head.fc.",
}
_VIT: Rules = {
    r"backbone\.patch_embed\.projection\.": "patch_embed.proj.",
    r"backbone\.layers\.(\d+)\.ln([12])\.": r"blocks.\1.norm\2.",
    r"backbone\.layers\.(\d+)\.attn\.": r"blocks.\1.attn.",
    r"backbone\.layers\.(\d+)\.ffn\.layers\.(0\.0|1)\.": lambda m: f"blocks.{m[1]}.mlp.{_MLP[m[2]]}.",
    r"backbone\.ln1\.": "norm.",
    r"backbone\.(?=pos_embed$|cls_token$)": "",
    r"head\.(fc|layers\.head)\.": "head.",
}
_CONVNEXT: Rules = {
    r"backbone\.downsample_layers\.0\.": "stem.",
    r"backbone\.downsample_layers\.(\d)\.": r"stages.\1.downsample.",
    r"backbone\.stages\.(\d)\.(\d+)\.depthwise_conv\.": r"stages.\1.blocks.\2.conv_dw.",
    r"backbone\.stages\.(\d)\.(\d+)\.pointwise_conv([12])\.": r"stages.\1.blocks.\2.mlp.fc\3.",
    r"backbone\.stages\.(\d)\.(\d+)\.(?=norm\.|gamma$)": r"stages.\1.blocks.\2.",
    r"head\.fc\.": "head.fc.",
}
_MIXER: Rules = {
    r"backbone\.patch_embed\.projection\.": "stem.proj.",
    r"backbone\.layers\.(\d+)\.norm": r"blocks.\1.norm",
    r"backbone\.layers\.(\d+)\.(token|channel)_mix\.layers\.(0\.0|1)\.": (
        lambda m: f"blocks.{m[1]}.mlp_{m[2]}s.{_MLP[m[3]]}."
    ),
    r"backbone\.norm1\.": "norm.",
    r"head\.fc\.": "head.",
}
_MOBILENETV1: Rules = {
    r"backbone\.model\.0\.0\.": "conv_stem.",
    r"backbone\.model\.0\.1\.": "bn1.",
    r"backbone\.model\.(\d+)\.([0134])\.": lambda m: _mobilenet_block(int(m[1]) - 1, m[2]),
    r"backbone\.s4\.([01])\.([0134])\.": lambda m: _mobilenet_block(int(m[1]) + 11, m[2]),
    r"head\.fc\.": "classifier.",
}


def _mobilenet_block(number: int, part: str) -> str:
    stage, block = _MOBILENET[number] if number < len(_MOBILENET) else (len(_MOBILENET), 0)
    return f"blocks.{stage}.{block}.{_MOBILENET_PARTS[part]}."


_FAMILIES: dict[type[nn.Module], Rules] = {
    ResNet: _RESNET,
    SwinTransformer: _SWIN,
    VisionTransformer: _VIT,
    ConvNeXt: _CONVNEXT,
    MlpMixer: _MIXER,
    EfficientNet: _MOBILENETV1,
}


def import_checkpoint(path: str | Path, name: str, **model_args: Any) -> Classifier:
    """Load a checkpoint of the authors' framework as a timm model; every weight must have its place.

    Args:
        path: A `.pth` file with mmpretrain's (or mmcls's) names, of a student or of the whole distiller.
        name: The name of the same model in timm, such as `resnet50d`.
        model_args: Further arguments of `timm.create_model`; they override those inferred from the weights' names.

    Raises:
        UserError: If the file cannot be read, or its names or shapes do not match the model's; lists them.
    """
    timm_config(name)
    state = read_checkpoint(path)
    head = next((state[key] for key in ("head.fc.weight", "head.layers.head.weight") if key in state), None)
    with torch.device("meta"):
        family = type(create(name, pretrained=False, model_args=model_args))
    arguments = {"num_classes": 0 if head is None else len(head), **_inferred_arguments(family, state), **model_args}
    classifier = Classifier(name, pretrained=False, **arguments)
    converted = convert(state, classifier.model, str(path))
    trained_at = stored_resolution(classifier.model, converted)
    if trained_at is not None and "img_size" not in model_args:
        classifier = Classifier(name, pretrained=False, resolution=trained_at, **arguments)
    load_weights(classifier.model, converted, path)
    # Always ImageNet's statistics, which timm's own weights of this name need not use.
    classifier.mean.copy_(torch.tensor(IMAGENET_DEFAULT_MEAN).view(-1, 1, 1))
    classifier.std.copy_(torch.tensor(IMAGENET_DEFAULT_STD).view(-1, 1, 1))
    classifier.crop_fraction = 0.875  # 256 -> 224, as in all released configurations
    return classifier


def _inferred_arguments(family: type[nn.Module], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer the architecture's arguments from the names: ViTs without class token, place of ConvNeXt's last norm."""
    if issubclass(family, VisionTransformer) and "backbone.cls_token" not in state:
        return {"class_token": False, "global_pool": "avg", "fc_norm": False}  # tokens are normalised before pooling
    if issubclass(family, ConvNeXt) and "backbone.norm2.weight" in state:
        return {"head_norm_first": True}  # the maps of several stages are each normalised, and pooled afterwards
    if issubclass(family, EfficientNet):
        return {"act_layer": "relu"}  # timm's default is ReLU6
    return {}


def convert(state: Mapping[str, Tensor], model: nn.Module, source: str) -> dict[str, Tensor]:
    """Convert a state dict with mmpretrain's names to timm's names and orders.

    Args:
        state: The state dict; its names begin with `backbone.` and `head.`.
        model: The timm model that it is for.
        source: Where the weights are from, for messages.

    Raises:
        UserError: If no map is known for this model, or for some of the names; lists them.
    """
    family = next((kind for kind in _FAMILIES if isinstance(model, kind)), None)
    if family is None:
        known = ", ".join(kind.__name__ for kind in _FAMILIES)
        raise UserError(f"model: no key map is known for a {type(model).__name__}; there are maps for {known}")
    rules = dict(_FAMILIES[family])
    if family is ResNet and "conv1.weight" in model.state_dict():  # the plain variant has the same names in both
        rules = {r"backbone\.": "", r"head\.fc\.": "fc."}
    if family is ConvNeXt:
        rules |= {r"backbone\.norm3\.": "norm_pre." if hasattr(model.norm_pre, "weight") else "head.norm."}
        state = {key: value for key, value in state.items() if not re.match(r"backbone\.norm[012]\.", key)}  # of maps
    renamed = {key: _rename(key, rules) for key in state}
    unknown = [key for key, new in renamed.items() if new is None]
    if unknown:
        few = ", ".join(sorted(unknown)[:3]) + (", ..." if len(unknown) > 3 else "")
        raise UserError(f"checkpoint: {source} is not a {type(model).__name__}; {len(unknown)} unknown keys: {few}")
    converted = {str(new): state[key] for key, new in renamed.items()}
    return _reorder(converted, model, source)


def _rename(key: str, rules: Rules) -> str | None:
    for pattern, new in rules.items():
        match = re.match(pattern, key)
        if match:
            return (new(match) if callable(new) else match.expand(new)) + key[match.end() :]
    return None


def _reorder(state: dict[str, Tensor], model: nn.Module, source: str) -> dict[str, Tensor]:
    """Reorder renamed tensors for timm, and check and drop the tensors that timm computes itself."""
    own, buffers = model.state_dict(), dict(model.named_buffers())
    for key in list(state):
        value = state[key]
        if re.search(r"downsample\.(norm|reduction)\.", key) and isinstance(model, SwinTransformer):
            state[key] = merging_order(value)
        elif key.endswith("attn_mask"):
            del state[key]  # determined by the resolution
        elif key in buffers and key not in own:
            if not torch.equal(value.flatten(), buffers[key].flatten()):
                raise UserError(f"checkpoint: {source} has another order of positions in {key}; it cannot be converted")
            del state[key]
    if "pos_embed" in own and "cls_token" not in own and state.pop("cls_token", None) is not None:
        state["pos_embed"] = state["pos_embed"][:, 1:]  # the class token's position is saved, but the model has none
    return state


def merging_order(weight: Tensor) -> Tensor:
    """Reorder Swin's patch merging, last axis `4C`, from `unfold`'s (C, row, column) to timm's (column, row, C)."""
    split = weight.reshape(*weight.shape[:-1], -1, 2, 2)
    return split.movedim((-1, -2, -3), (-3, -2, -1)).flatten(-3)
