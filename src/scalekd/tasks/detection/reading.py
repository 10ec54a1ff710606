"""Reads both splits of a run, compares them with each other and describes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scalekd.errors import UserError
from scalekd.tasks.detection.categories import labels_by_name, learned_classes, report_absent_classes
from scalekd.tasks.detection.coco import CocoSplit, Remark, build_split, read_source
from scalekd.tasks.detection.schema import Detection
from scalekd.tasks.transfer.splits import refuse_large_batch, refuse_shared


def read_data(recipe: Detection, say: Callable[[str], object]) -> tuple[CocoSplit, CocoSplit]:
    """Read the training and validation images, and report a line on each split.

    Raises:
        UserError: If a split is missing or cannot be read, has no usable annotation, the splits share images or
            disagree in their classes, or there are too few images for the batch or the warm-up.
    """
    train, val = (read_source(_root(recipe), split) for split in (recipe.train_split, recipe.val_split))
    classes = learned_classes(train.file, train.content, val.content, say)
    labels = [labels_by_name(source.file, source.content, classes, str(train.file)) for source in (train, val)]
    splits = [
        build_split(source, part, classes, crowds=recipe.crowds)
        for source, part in zip((train, val), labels, strict=True)
    ]
    _describe(splits[0], say, training=True)
    _describe(splits[1], say, training=False)
    report_absent_classes(val.file, val.content, classes, say)
    training, validation = ([image.path for image in split.images] for split in splits)
    refuse_shared(training, validation, "split them into two files (see docs/transfer-detection.md)")
    return _learned(splits[0], recipe, say), splits[1]


def read_validation(recipe: Detection, classes: Sequence[str], say: Callable[[str], object]) -> CocoSplit:
    """Read the validation images for a detector of these classes.

    Raises:
        UserError: If the split is missing or cannot be read, or has objects of other classes or no objects.
    """
    source = read_source(_root(recipe), recipe.val_split)
    labels = labels_by_name(source.file, source.content, classes, "the detector was trained for")
    val = build_split(source, labels, classes, crowds=recipe.crowds)
    _describe(val, say, training=False)
    report_absent_classes(source.file, source.content, classes, say)
    return val


def facts(split: CocoSplit, *, training: bool) -> dict[str, Any]:
    """Return the facts on a split for a run's result: counts, and remarks on annotations that are not used as is."""
    return {"images": len(split), "annotations": split.annotations, "remarks": _remarks(split, training=training)}


def _root(recipe: Detection) -> Path:
    if recipe.data is None:
        raise UserError("data: none is given; pass --data (a folder with annotations/, train2017/ and val2017/)")
    return recipe.data


def _remarks(split: CocoSplit, *, training: bool) -> dict[str, int]:
    texts = ((remark.training if training else remark.evaluation, count) for remark, count in split.remarks.items())
    return {text: count for text, count in texts if text is not None}


def _describe(split: CocoSplit, say: Callable[[str], object], *, training: bool) -> None:
    """Report a line on the content of a split.

    Raises:
        UserError: If none of its annotations can be used.
    """
    counted = "".join(f"; {count} {what}" for what, count in _remarks(split, training=training).items())
    use = "training" if training else "validation"
    say(f"data      {use}: {split.file}: {len(split)} images, {len(split.objects)} objects{counted}")
    if not any(instance.trained if training else not instance.crowd for instance in split.objects):
        raise UserError(f"data: {split.file}: {_why_nothing(split, training=training)}")


def _why_nothing(split: CocoSplit, *, training: bool) -> str:
    """Explain why no annotation of a split can be used."""
    done = "trained on" if training else "measured"
    if not split.annotations:
        return f"it holds no annotations, so nothing can be {done}"
    if split.remarks[Remark.CROWD] == split.annotations:
        return (
            f"all {split.annotations} objects are marked as crowds (iscrowd), and none can be {done}; some tools mark "
            "every mask so: crowds=objects (--crowds objects) treats them as objects"
        )
    counted = "; ".join(f"{count} {what}" for what, count in _remarks(split, training=training).items())
    if split.objects and all(max(instance.stated) <= 1 for instance in split.objects):
        counted += "; boxes seem to be fractions of the image, but must be in pixels"
    return f"none of the {split.annotations} annotations can be {done}: {counted}"


def _learned(train: CocoSplit, recipe: Detection, say: Callable[[str], object]) -> CocoSplit:
    """Select the training images, with or without empty ones, and check that there are enough for the recipe.

    Raises:
        UserError: If there are too few images for the batch or the warm-up.
    """
    learned = train if recipe.empty_images else train.without_empty()
    if len(learned) < len(train):
        say(f"data      {len(train) - len(learned)} training images without objects are left out; see empty_images")
    refuse_large_batch(recipe.batch, len(learned))
    steps = len(learned) // recipe.batch * recipe.epochs
    if recipe.warmup_steps >= steps:
        raise UserError(f"warmup_steps: {recipe.warmup_steps} must be less than the {steps} steps of the run")
    rest = len(learned) % recipe.batch
    if rest:
        say(f"data      {rest} training images are left out of each epoch: they do not fill a batch")
    return learned
