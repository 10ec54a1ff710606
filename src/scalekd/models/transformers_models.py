"""Vision models of Hugging Face transformers (`transformers:NAME`), by their name on the hub or from a local folder."""

from __future__ import annotations

import json
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from torch import nn

from scalekd.errors import UserError, first_line
from scalekd.models.timm_config import answered_at_once, reason_of

TRANSFORMERS = "transformers:"
_SETTINGS = "preprocessor_config.json"


def create_transformers(name: str, *, pretrained: bool, model_args: dict[str, Any]) -> nn.Module:
    """Build a vision model of transformers in float32, with the resolution and normalisation of its image processor.

    A model for image classification has logits. Of a model for images and texts (CLIP, SigLIP), the image tower is
    taken.

    Args:
        name: Name on the hub, or a folder, without prefix.
        pretrained: Whether to load its weights.
        model_args: Further settings of its configuration.

    Raises:
        UserError: If transformers is not installed, or the model cannot be built.
    """
    try:
        transformers = import_module("transformers")
    except ImportError:
        raise UserError(
            f"model: {TRANSFORMERS}{name} needs Hugging Face transformers: pip install 'scalekd[transformers]'"
        ) from None
    local = Path(name).is_dir()
    with nullcontext() if local else answered_at_once():
        try:
            config = transformers.AutoConfig.from_pretrained(name, **model_args)
            missing, model = _load(transformers, name, config, pretrained=pretrained)
        except Exception as error:
            raise UserError(f"model: {TRANSFORMERS}{name} cannot be loaded: {reason_of(error)}") from error
        if missing:
            raise UserError(f"model: the weights of {TRANSFORMERS}{name} have no {missing[0]} ({len(missing)} missing)")
        settings = _settings(name, local=local)
    module: nn.Module = getattr(model, "vision_model", model)
    vision = getattr(config, "vision_config", config)
    if not hasattr(vision, "image_size"):
        raise UserError(f"model: {TRANSFORMERS}{name} is a {config.model_type}, which takes no images of a known size")
    module.pretrained_cfg = _configuration(vision, settings)  # type: ignore[assignment]
    return module


def _load(transformers: Any, name: str, config: Any, *, pretrained: bool) -> tuple[list[str], Any]:
    """Return the parameters that the weights lack, and the model."""
    kind = transformers.AutoModel
    if (config.architectures or [""])[0].endswith("ForImageClassification"):
        kind = transformers.AutoModelForImageClassification
    if not pretrained:
        return [], kind.from_config(config)
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        settings = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
        model, about = kind.from_pretrained(name, config=config, **settings)
    finally:
        if shown:
            bars.enable_progress_bar()
    return sorted(about["missing_keys"]), model


def tokens_of(module: nn.Module) -> str:
    """Return the part of a model of transformers that gives its final tokens: its body if it has a head, or itself."""
    body = str(getattr(module, "base_model_prefix", ""))
    return body if hasattr(module, body) else ""


def _settings(name: str, *, local: bool) -> dict[str, Any]:
    """Read the settings of a model's image processor; empty if it has none."""
    try:
        file = Path(name) / _SETTINGS if local else Path(hf_hub_download(name, _SETTINGS))
        found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        if local and isinstance(error, FileNotFoundError):
            return {}
        raise UserError(f"model: {_SETTINGS} of {name} cannot be read: {first_line(error)}") from error
    return found


def _configuration(config: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Return resolution and normalisation as timm states them."""
    side = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
    found: dict[str, Any] = {"input_size": (3, side, side), "crop_pct": 1.0}
    if "image_mean" in settings and "image_std" in settings:
        found |= {"mean": tuple(settings["image_mean"]), "std": tuple(settings["image_std"])}
    return found
