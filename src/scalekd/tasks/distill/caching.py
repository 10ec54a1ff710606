"""Describes the teacher cache of a recipe, and compares a sample of it with the live teacher."""

from __future__ import annotations

import random
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from scalekd.data import Key, ReplayDataset, Split
from scalekd.data.cache import CacheReader, Identity, Layout, TeacherCache, list_images
from scalekd.data.cache.identity import SHARE
from scalekd.data.decoding import DECODING
from scalekd.data.loader import ALL
from scalekd.errors import UserError
from scalekd.hardware import Compute
from scalekd.methods.outputs import TeacherOutputs
from scalekd.models import Teacher
from scalekd.recipes import DataKeys, Recipe

# Data keys that do not affect a training image. Keys that are not listed here are part of a cache's identity.
_WITHOUT_EFFECT = {
    "data", "unlabelled_split", "labels", "crop_fraction", "mixup", "cutmix",
    "augmentation_epochs", "workers", "max_corrupt", "data_patience",
}  # fmt: skip
_SAMPLE = 8  # images that are compared with the live teacher
_LEAST_COSINE = 0.99  # between cached and live tokens of an image


def describe_cache(recipe: Recipe, teacher: Teacher, split: Split, dtype: torch.dtype) -> tuple[Identity, Layout]:
    """Return the identity of a recipe's cache (everything that its content depends on) and its layout.

    Args:
        recipe: The run's settings.
        teacher: The teacher as loaded: `hold_weights` must not have been called.
        split: The training images.
        dtype: The autocast type.
    """
    share = recipe.stored_share
    augmentation = recipe.model_dump(mode="json", include=set(DataKeys.model_fields) - _WITHOUT_EFFECT)
    identity = Identity(
        {
            "decoding": DECODING,
            "teacher": teacher.name,
            "teacher_args": teacher.model_args,
            "teacher weights": teacher.weights_hash(),
            "teacher_resolution": teacher.resolution,
            "teacher mean": teacher.mean.flatten().tolist(),
            "teacher std": teacher.std.flatten().tolist(),
            **({} if recipe.teacher_tokens is None else {"teacher_tokens": recipe.teacher_tokens}),
            **augmentation,
            "seed": recipe.seed,
            "precision": str(dtype).removeprefix("torch."),
            "cache_format": recipe.cache_format,
            **({} if share == ALL else {SHARE: share.share}),  # caches with all tokens keep their names
        },
        list_images(split),
    )
    tokens = teacher.tokens
    return identity, Layout(tokens.positions, tokens.channels, teacher.num_classes, dtype, recipe.cache_format, share)


def find_cache(recipe: Recipe, teacher: Teacher, split: Split, dtype: torch.dtype) -> tuple[Identity, Layout]:
    """Return identity and layout of the cache that a recipe uses.

    This is the cache with just the tokens that the recipe needs. If it is not complete, but the cache with the tokens
    of all images is, the latter is used. See `describe_cache` for the arguments.
    """
    assert recipe.cache is not None
    views = recipe.augmented_views
    own, layout = describe_cache(recipe, teacher, split, dtype)
    if not own.cache(recipe.cache, layout).missing(views):
        return own, layout
    settings = {name: value for name, value in own.settings.items() if name != SHARE}
    larger, all_tokens = Identity(settings, own.listing), replace(layout, share=ALL)
    return (own, layout) if larger.cache(recipe.cache, all_tokens).missing(views) else (larger, all_tokens)


def compute_outputs(teacher: Teacher, compute: Compute, images: Tensor) -> TeacherOutputs:
    """Compute the teacher's outputs for images as in a training step."""
    with compute.autocast():
        outputs: TeacherOutputs = teacher(images.to(compute.device, non_blocking=True))
    return outputs


def compare_sample(
    cache: TeacherCache, dataset: ReplayDataset, teacher: Teacher, *, views: int, micro_batch: int, compute: Compute
) -> str:
    """Run the live teacher on a few images of all views and compare its outputs with the cache's.

    Args:
        cache: The complete cache.
        dataset: The training images with their augmentation, without the cache.
        teacher: The teacher in the run's dtype and layout, on its device.
        views: Number of views of the run.
        micro_batch: Images at once in the run.
        compute: Where and in which number format the run computes.

    Returns:
        A human-readable text on how well they agree.

    Raises:
        UserError: If they disagree; names the image.
    """
    samples = _draw_sample(dataset, views)
    at_once, reader, equal, least = min(micro_batch, _SAMPLE), CacheReader(cache, cache.layout.share), 0, 1.0
    for first in range(0, len(samples), at_once):
        part = samples[first : first + at_once]
        images = torch.stack([image for _, image in part] + [part[-1][1]] * (at_once - len(part)))
        encoded = cache.layout.encode(compute_outputs(teacher, compute, images), range(at_once))
        for row, (key, _) in enumerate(part):
            kept = reader(key)
            live = cache.layout.decode(encoded, row, None if kept.tokens is None else row)
            cosines = [
                F.cosine_similarity(one.float(), two.float(), dim=-1).mean().item()
                for one, two in zip(kept, live, strict=True)
                if one is not None and two is not None
            ]
            cosine = min(cosines, default=1.0)
            if not cosine > _LEAST_COSINE:
                raise UserError(
                    f"cache: {cache.path} differs from the teacher's outputs for {dataset.split.locate(key.image)} "
                    f"(view {key.epoch}, cosine {cosine:.3f}): the images' content or the software changed; "
                    "delete it and fill it again"
                )
            least = min(least, cosine)
            equal += all(
                one is two is None or (one is not None and two is not None and torch.equal(one, two))
                for one, two in zip(kept, live, strict=True)
            )
    agreement = "bit-equal" if equal == len(samples) else f"{equal} of them bit-equal, least cosine {least:.6f}"
    return f"sample of {len(samples)} {agreement}"


def _draw_sample(dataset: ReplayDataset, views: int) -> list[tuple[Key, Tensor]]:
    """Read a few images of all views; always the same ones."""
    every = range(views * len(dataset))  # one index per view and image
    indices = random.Random(0).sample(every, min(_SAMPLE, len(every)))
    keys = [Key(*divmod(index, len(dataset))) for index in sorted(indices)]
    return [(key, image) for key in keys if (image := dataset[key].image) is not None]
