"""Models of the paper that timm can build but has no name for, under a name of their own."""

from __future__ import annotations

from functools import cache
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.mlp_mixer import MlpMixer

NAMES = ("mixer_b14_224",)

default_cfgs = generate_default_cfgs(
    {
        "mixer_b14_224.untrained": {
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "fixed_input_size": True,
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "stem.proj",
            "classifier": "head",
        }
    }
)


def mixer_b14_224(pretrained: bool = False, **kwargs: Any) -> MlpMixer:
    """Build Mixer-B/14: timm's `mixer_b16_224`, whose builder fixes the patch size, with patches of 14 pixels.

    Without scalekd, use `timm.models.mlp_mixer.MlpMixer(patch_size=14, num_blocks=12, embed_dim=768)`.
    """
    arguments = {"patch_size": 14, "num_blocks": 12, "embed_dim": 768} | kwargs
    return build_model_with_cfg(MlpMixer, "mixer_b14_224", pretrained, **arguments)


@cache
def register_models() -> None:
    """Add these models to timm's registry, for this process; `timm.create_model` then builds them."""
    register_model(mixer_b14_224)
