"""Build models by name: from timm, or with a prefix from torchvision, transformers or the user's own code."""

from __future__ import annotations

import importlib
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import timm
import torchvision
from torch import nn

from scalekd.errors import UserError, did_you_mean
from scalekd.keys import FIXED_ARGS, TRANSFORMERS
from scalekd.models.paper_models import register_models
from scalekd.models.timm_config import LOCAL, Described, answered_at_once, is_described, read_description, reason_of
from scalekd.models.transformers_models import create_transformers

TORCHVISION = "torchvision:"
PYTHON = "python:"
MODULE = "module:"  # a module that was passed to `scalekd.distill`, which cannot be built by its name
_FLAGS = " (--teacher-weights or --student-weights; --weights of evaluate and predict)"


def is_timm(name: str) -> bool:
    """Whether a name is timm's (including the hub's), as opposed to another library's or the user's own code."""
    return not name.startswith((TORCHVISION, TRANSFORMERS, PYTHON, MODULE))


def may_come_from_a_file(name: str) -> bool:
    """Whether a weights file may specify this model: only names in timm's own registry or torchvision's are allowed.

    The user's code and names that timm resolves elsewhere (`hf-hub:`, `local-dir:`) are not allowed, because opening
    weights must not run code or fetch anything.
    """
    if name.startswith(TORCHVISION):
        return name.removeprefix(TORCHVISION) in _torchvision_names()
    register_models()
    return ":" not in name and name.isprintable() and timm.is_model(name.split(".", maxsplit=1)[0])


def create(name: str, *, pretrained: bool, model_args: dict[str, Any]) -> nn.Module:
    """Build a model by name.

    Args:
        name: A timm name, `torchvision:resnet50`, `transformers:OWNER/NAME` or a folder, or
            `python:package.module.callable` for the user's own code.
        pretrained: Whether to load the hub's weights.
        model_args: Arguments of `timm.create_model`, of torchvision's builder or of the user's callable.

    Raises:
        UserError: If there is no such model, it cannot be built, or its weights cannot be fetched.
    """
    register_models()
    if name.startswith(MODULE):
        raise UserError(
            f"model: {name} was passed to scalekd.distill as a module and cannot be built here; pass it again"
        )
    try:
        if name.startswith(TORCHVISION):
            return _torchvision(name.removeprefix(TORCHVISION), pretrained, model_args)
        if name.startswith(TRANSFORMERS):
            place = name.removeprefix(TRANSFORMERS)
            return create_transformers(place, pretrained=pretrained, model_args=model_args)
        if name.startswith(PYTHON):
            if pretrained:
                raise UserError(f"weights: there are no hub weights of {name}; specify a weights file{_FLAGS}")
            return _own_code(name.removeprefix(PYTHON), model_args)
        asks = pretrained or is_described(name)
        with answered_at_once() if asks and not name.startswith(LOCAL) else nullcontext():
            module: nn.Module = timm.create_model(name, pretrained=pretrained, **model_args)
        return module
    except UserError:
        raise
    except Exception as error:
        if not pretrained or isinstance(error, TypeError | AssertionError):
            raise UserError(f"model: {name} cannot be built with {model_args}: {reason_of(error)}") from error
        raise UserError(
            f"model: the hub weights of {name} cannot be loaded ({type(error).__name__}: {reason_of(error)}); "
            f"specify a local safetensors file{_FLAGS} instead, or train your own teacher with "
            "`scalekd distill --method none`"
        ) from error


def timm_config(name: str) -> Any:
    """Return timm's pretrained configuration of a name in its registry; an empty one for models from elsewhere.

    Raises:
        UserError: If timm does not know the name; suggests the nearest.
    """
    if not is_timm(name):
        return timm.models.PretrainedCfg()
    register_models()
    architecture = name.split(".", maxsplit=1)[0]
    if not timm.is_model(architecture):
        hint = did_you_mean(architecture, timm.list_models()) or (
            f", and there is no such file (models of transformers: {TRANSFORMERS}{name})" if "/" in name else ""
        )
        raise UserError(f"model: timm has no {name!r}{hint}")
    return timm.get_pretrained_cfg(name, allow_unregistered=True) or timm.models.PretrainedCfg()


def described(name: str) -> Described | None:
    """Read the description of a model on the hub or in a timm folder; None for all other names.

    Raises:
        UserError: See `read_description`.
    """
    register_models()
    return read_description(name, FIXED_ARGS) if is_described(name) else None


def _torchvision(name: str, pretrained: bool, model_args: dict[str, Any]) -> nn.Module:
    known = _torchvision_names()
    if name not in known:
        raise UserError(f"model: torchvision has no classifier {name!r}{did_you_mean(name, known)}")
    module: nn.Module = torchvision.models.get_model(name, **model_args)
    if pretrained:
        # Not with get_model(weights=...), which unpickles and does not accept another number of classes.
        weights = torchvision.models.get_model_weights(name).DEFAULT
        state, own = weights.get_state_dict(progress=False, check_hash=True, weights_only=True), module.state_dict()
        module.load_state_dict({k: v for k, v in state.items() if own[k].shape == v.shape}, strict=False)
    return module


def _torchvision_names() -> list[str]:
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def _own_code(path: str, model_args: dict[str, Any]) -> nn.Module:
    module_name, _, attribute = path.rpartition(".")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does, so that files in the working folder are found
    try:
        build = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"model: python:{path} cannot be imported ({error}); use python:module.callable, found from {Path.cwd()}"
        ) from error
    module = build(**model_args)
    if not isinstance(module, nn.Module):
        raise UserError(f"model: python:{path} returned a {type(module).__name__}, not a torch.nn.Module")
    return module
