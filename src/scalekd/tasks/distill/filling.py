"""Fills the teacher cache of a recipe."""

from __future__ import annotations

from functools import partial
from typing import Any

from rich.console import Console

from scalekd.data import CorruptImages
from scalekd.data.cache import TeacherCache, check_shards, fill
from scalekd.data.cache.store import size
from scalekd.data.skipped_files import left_out
from scalekd.errors import UserError, printable
from scalekd.hardware import pick_compute
from scalekd.models.memory_format import prepare_teacher
from scalekd.progress import RateMeter, image_bar, plain_lines
from scalekd.recipes import Recipe
from scalekd.tasks.distill.build import build_teacher
from scalekd.tasks.distill.caching import compute_outputs, find_cache
from scalekd.tasks.distill.describing import remarks
from scalekd.tasks.distill.inputs import Splits, check_output, read_data, training_images

_BATCH = 64  # images at once if the recipe's batch is larger and micro_batch is not set


def fill_cache(
    recipe: Recipe,
    *,
    plan: bool = False,
    rebuild: bool = False,
    console: Console | None = None,
    splits: Splits | None = None,
) -> dict[str, Any]:
    """Run the recipe's teacher on all views of the training images and store its outputs.

    Args:
        recipe: Settings of the runs that will read the cache; the student is not used.
        plan: Whether to print only the size and fill nothing.
        rebuild: Whether to delete corrupt shards and compute them again.
        console: Where to print. Default: standard error.
        splits: Training and validation images, if they are not those of the recipe's `data`.

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
    train, val = splits or read_data(recipe)
    compute = pick_compute(recipe)
    teacher = build_teacher(recipe, val.classes)
    identity, layout = find_cache(recipe, teacher, train, compute.dtype)
    cache, views = identity.cache(recipe.cache, layout), recipe.augmented_views
    summary = _summary(cache, views)
    for line in (f"teacher   {teacher}", *remarks(teacher), *left_out({recipe.train_split: train.skipped})):
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
    with image_bar(console) as bar:
        meter = RateMeter(bar, "cache")
        fill(
            cache,
            training_images(recipe, train),
            partial(compute_outputs, teacher.to(compute.device), compute),
            views=views,
            batch=recipe.micro_batch or min(recipe.batch, _BATCH),
            workers=recipe.workers,
            corrupt=CorruptImages(recipe.max_corrupt, say),
            progress=meter.add,
        )
    return _summary(cache, views) | {"made": meter.images, "images_per_second": round(meter.rate, 2)}


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
