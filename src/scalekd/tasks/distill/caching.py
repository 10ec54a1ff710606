"""Describes and fills the teacher cache of a recipe, and compares a sample of it with the live teacher."""

from __future__ import annotations

import random
import time
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from scalekd.data import CorruptImages, Key, ReplayDataset, Split
from scalekd.data.aside import left_out
from scalekd.data.cache import CacheReader, Identity, Layout, TeacherCache, check_shards, fill, list_images
from scalekd.data.cache.store import size
from scalekd.data.decoding import DECODING
from scalekd.errors import UserError, printable
from scalekd.hardware import Compute, pick_compute
from scalekd.methods.outputs import TeacherOutputs
from scalekd.models import Teacher
from scalekd.models.layout import prepare_teacher
from scalekd.progress import image_bar, plain_lines
from scalekd.recipes import DataKeys, Recipe
from scalekd.tasks.distill.build import build_teacher, remarks
from scalekd.tasks.distill.inputs import check_output, read_data, training_images

# Data keys that do not affect a training image. Keys that are not listed here are part of a cache's identity.
_WITHOUT_EFFECT = {
    "data", "train_split", "val_split", "unlabelled_split", "labels", "crop_fraction", "mixup", "cutmix",
    "augmentation_epochs", "workers", "max_corrupt", "data_patience",
}  # fmt: skip
_BATCH = 64  # images at once if the recipe's batch is larger and micro_batch is not set
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
            **augmentation,
            "seed": recipe.seed,
            "precision": str(dtype).removeprefix("torch."),
            "cache_format": recipe.cache_format,
        },
        list_images(split),
    )
    tokens = teacher.tokens
    return identity, Layout(tokens.positions, tokens.channels, teacher.num_classes, dtype, recipe.cache_format)


def fill_cache(
    recipe: Recipe, *, plan: bool = False, rebuild: bool = False, console: Console | None = None
) -> dict[str, Any]:
    """Run the recipe's teacher on all views of the training images and store its outputs.

    Args:
        recipe: Settings of the runs that will read the cache; the student is not used.
        plan: Whether to print only the size and fill nothing.
        rebuild: Whether to delete corrupt shards and compute them again.
        console: Where to print. Default: standard error.

    Returns:
        The cache's folder, its size, and how fast it was filled.

    Raises:
        UserError: For any wrong input, and if there is too little disk space.
    """
    if recipe.cache is None:
        raise UserError("cache: no folder is given; pass --cache (one folder may hold many caches)")
    if recipe.method == "none":
        raise UserError("cache: method none reads no teacher; set method to that of the runs that will read the cache")
    console = console or Console(stderr=True)
    say = plain_lines(console)
    check_output(recipe, recipe.cache, "cache")
    train, val = read_data(recipe)
    compute = pick_compute(recipe)
    teacher = build_teacher(recipe, val.classes)
    identity, layout = describe_cache(recipe, teacher, train, compute.dtype)
    cache, views = identity.cache(recipe.cache, layout), recipe.augmented_views
    summary = _summary(cache, views)
    for line in (f"teacher   {teacher}", *remarks(teacher), *left_out({recipe.train_split: train.aside})):
        say(line)
    say(
        f"cache     {summary['images']:,} images x {views} view(s), {size(layout.bytes_per_image)} per image as "
        f"{recipe.cache_format}: {size(summary['bytes_per_view'])} per view, {size(summary['bytes'])} in total, "
        f"{size(summary['bytes_missing'])} missing; {size(summary['bytes_free'])} free"
    )
    if plan:
        return summary
    cache.create(identity.ingredients, identity.listing)
    if rebuild:
        for shard, fault in cache.faulty(views).items():
            say(f"rebuild   {printable(cache.file(shard))} {fault}")
            cache.file(shard).unlink(missing_ok=True)
    check_shards(cache, views)
    cache.check_space(views)
    prepare_teacher(teacher, *compute)
    with _Meter(console) as meter:
        fill(
            cache,
            training_images(recipe, train),
            partial(_ask, teacher.to(compute.device), compute),
            views=views,
            batch=recipe.micro_batch or min(recipe.batch, _BATCH),
            workers=recipe.workers,
            corrupt=CorruptImages(recipe.max_corrupt, say),
            progress=meter.update,
        )
    return _summary(cache, views) | {"made": meter.made, "images_per_second": round(meter.rate, 2)}


def _summary(cache: TeacherCache, views: int) -> dict[str, Any]:
    view = cache.images * cache.layout.bytes_per_image
    return {
        "folder": str(cache.path),
        "images": cache.images,
        "views": views,
        "bytes_per_image": cache.layout.bytes_per_image,
        "bytes_per_view": view,
        "bytes": view * views,
        "bytes_missing": cache.bytes_missing(views),
        "bytes_free": cache.bytes_free(),
    }


def _ask(teacher: Teacher, compute: Compute, images: Tensor) -> TeacherOutputs:
    """Compute the teacher's outputs for images as in a training step."""
    with compute.autocast():
        outputs: TeacherOutputs = teacher(images.to(compute.device, non_blocking=True))
    return outputs


class _Meter:
    """Counts the images whose outputs were computed, and shows a progress bar on a terminal."""

    def __init__(self, console: Console) -> None:
        self.made, self._started = 0, time.perf_counter()
        self._bar = image_bar(console)
        self._task = self._bar.add_task("cache", total=None, rate=0.0)

    def __enter__(self) -> _Meter:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @property
    def rate(self) -> float:
        """Images per second since the start."""
        return self.made / (time.perf_counter() - self._started)

    def update(self, images: int, missing: int) -> None:
        """Count images that this process computed; `missing` remain for this or another process."""
        self.made += images
        self._bar.update(self._task, completed=self.made, total=self.made + missing, rate=self.rate)


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
    at_once, reader, equal, least = min(micro_batch, _SAMPLE), CacheReader(cache), 0, 1.0
    for first in range(0, len(samples), at_once):
        part = samples[first : first + at_once]
        images = torch.stack([image for _, image in part] + [part[-1][1]] * (at_once - len(part)))
        said = cache.layout.encode(_ask(teacher, compute, images))
        for row, (key, _) in enumerate(part):
            kept = reader(key)
            live = cache.layout.decode({name: tensor[row] for name, tensor in said.items()})
            cosine = F.cosine_similarity(kept.tokens.float(), live.tokens.float(), dim=-1).mean().item()
            if not cosine > _LEAST_COSINE:
                raise UserError(
                    f"cache: {cache.path} does not hold what the teacher says of {dataset.split.locate(key.image)} "
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
    every = range(views * len(dataset))
    numbers = random.Random(0).sample(every, min(_SAMPLE, len(every)))
    keys = [Key(*divmod(number, len(dataset))) for number in sorted(numbers)]
    return [(key, image) for key in keys if (image := dataset[key].image) is not None]
