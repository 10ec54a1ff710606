"""`scalekd cache`."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated

import typer

from scalekd.cli.options import Flags, RecipeName, with_recipe_flags
from scalekd.errors import printable
from scalekd.recipes import DataKeys, Recipe, SourceKeys, load

_OWN = {
    "method", "teacher", "teacher_weights", "teacher_args", "teacher_resolution", "teacher_tokens",
    "cache", "cache_format", "epochs", "batch", "micro_batch", "seed", "precision", "accelerator",
    *DataKeys.model_fields, *SourceKeys.model_fields,
} - {"crop_fraction", "mixup", "cutmix"}  # fmt: skip
_OTHERS = set(Recipe.model_fields) - _OWN


@with_recipe_flags(
    hidden=_OTHERS,
    help_texts={
        "method": "none needs no cache; all others share one.  [default: scalekd]",
        "cache": "Folder of caches; each cache is a subfolder.",
        "epochs": "Epochs of the run: each needs a view of every image, unless augmentations repeat.  [default: 100]",
        "batch": "Batch of the runs; the cache does not depend on it.  [default: 256]",
        "micro_batch": "Number of images that the teacher sees at once. Default: the batch, at most 64.",
        "max_corrupt": "Number of unreadable images to skip before filling stops.  [default: 10]",
    },
)
def cache(
    *,
    recipe: RecipeName = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only print how large it will be.")] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Delete truncated and foreign shards and compute them again.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    flags: Flags,
) -> None:
    """Run the teacher once over all augmented images and store its outputs for later runs.

    All flags of the `distill` run that will read the cache are accepted; those that affect the cache are listed here.
    The same command resumes a stopped one. Several processes may fill one cache together.

    Examples:
        scalekd cache --recipe imagenette --data DATA --cache CACHES --plan
        scalekd cache --recipe imagenette --data DATA --cache CACHES
        scalekd distill --recipe imagenette --data DATA --cache CACHES --output out
    """
    load(recipe, flags)  # refuses wrong values before torch is imported
    from scalekd.data.cache.store import size
    from scalekd.tasks.distill import fill_cache
    from scalekd.tasks.distill.inputs import count_images

    settings = load(recipe, flags, partial(typer.echo, err=True), count_images)

    found = fill_cache(settings, plan=plan, rebuild=rebuild)
    if as_json:
        typer.echo(json.dumps(found))
    elif not plan:
        made = "complete"
        if found["made"]:
            made = f"{found['made']:,} made now, {found['images_per_second']:.1f} per second"
        typer.echo(
            f"cache     {printable(found['folder'])}: {found['images']:,} images x {found['views']} view(s), "
            f"{size(found['bytes'])}; {made}"
        )
