"""Vision models of Hugging Face transformers (`transformers:NAME`), by their name on the hub or from a local folder."""

from __future__ import annotations

import json
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import nn

from scalekd.errors import UserError, first_line
from scalekd.keys import TRANSFORMERS
from scalekd.models.timm_config import answered_at_once, reason_of

_USUAL = 224  # image side in pixels of models that state none


def create_transformers(name: str, *, pretrained: bool, model_args: dict[str, Any]) -> nn.Module:
    """Build a vision model of transformers in float32, with the resolution and normalisation of its image processor.

    A model for image classification has logits. Of a model for images and texts (CLIP, SigLIP), the image tower is
    taken. Code from the hub is never run.

    Args:
        name: Name on the hub, or a folder, without prefix.
        pretrained: Whether to load its weights.
        model_args: Settings of its configuration to change.

    Raises:
        UserError: If transformers is not installed, or the model cannot be built or takes no images.
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
            config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
            _change(config, model_args)
            missing, model = _load(transformers, name, config, pretrained=pretrained)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"model: {TRANSFORMERS}{name} cannot be loaded: {reason_of(error)}") from error
        settings = _processor(name, local=local)
    if missing:
        raise UserError(f"model: the weights of {TRANSFORMERS}{name} have no {missing[0]} ({len(missing)} missing)")
    module: nn.Module = model if _classifies(config) else getattr(model, "vision_model", model)
    if getattr(module, "main_input_name", "pixel_values") != "pixel_values":
        raise UserError(f"model: {TRANSFORMERS}{name} is a {config.model_type}, which takes no images")
    if settings.get("do_flip_channel_order"):
        raise UserError(f"model: {TRANSFORMERS}{name} takes images as BGR, which is not supported")
    module.pretrained_cfg = _configuration(getattr(config, "vision_config", config), settings)  # type: ignore[assignment]
    return module


def tokens_of(module: nn.Module) -> str:
    """Return the part of a model of transformers that gives its final tokens: its body if it has a head, or itself."""
    names = (str(getattr(module, "base_model_prefix", "")), "vision_model")
    return next((name for name in names if name and hasattr(module, name)), "")


def _classifies(config: Any) -> bool:
    return bool((config.architectures or [""])[0].endswith("ForImageClassification"))


def _change(config: Any, settings: dict[str, Any]) -> None:
    for key, value in settings.items():
        if not hasattr(config, key):
            raise UserError(f"teacher_args: the configuration of a {config.model_type} has no {key!r}")
        setattr(config, key, value)


def _load(transformers: Any, name: str, config: Any, *, pretrained: bool) -> tuple[list[str], Any]:
    """Return the parameters that the weights lack, without those that no token depends on, and the model."""
    kind = transformers.AutoModelForImageClassification if _classifies(config) else transformers.AutoModel
    if not pretrained:
        return [], kind.from_config(config, trust_remote_code=False)
    log = transformers.utils.logging
    shown, level = log.is_progress_bar_enabled(), log.get_verbosity()
    log.disable_progress_bar()
    log.set_verbosity_error()  # what is missing is reported here
    try:
        settings = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
        model, about = kind.from_pretrained(name, config=config, trust_remote_code=False, **settings)
    finally:
        log.set_verbosity(level)
        if shown:
            log.enable_progress_bar()
    return sorted(key for key in about["missing_keys"] if "pooler" not in key.split(".")), model


def _processor(name: str, *, local: bool) -> dict[str, Any]:
    """Read the settings of a model's image processor; empty if it has none."""
    for file, part in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        try:
            place = Path(name) / file if local else Path(hf_hub_download(name, file))
            found: dict[str, Any] = json.loads(place.read_text("utf-8"))
        except LocalEntryNotFoundError as error:
            raise UserError(f"model: {file} of {TRANSFORMERS}{name} cannot be read: {reason_of(error)}") from error
        except (FileNotFoundError, EntryNotFoundError):
            continue
        except (OSError, ValueError) as error:
            raise UserError(f"model: {file} of {TRANSFORMERS}{name} cannot be read: {first_line(error)}") from error
        return found if part is None else found.get(part, {})
    return {}


def _configuration(config: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Return resolution and normalisation as timm states them; without `mean` if the model states none."""
    side = getattr(config, "image_size", _USUAL)
    side = side if isinstance(side, int) else side[0]
    found: dict[str, Any] = {"input_size": (3, side, side), "crop_pct": 1.0}
    if settings.get("do_normalize") is False:
        return found | {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    if "image_mean" in settings and "image_std" in settings:
        found |= {"mean": tuple(settings["image_mean"]), "std": tuple(settings["image_std"])}
    return found
