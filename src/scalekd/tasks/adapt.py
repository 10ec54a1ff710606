"""Fits a head to a feature-only teacher, or fine-tunes the teacher, so that it has logits for the user's classes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from scalekd.atomic import write_json
from scalekd.data import (
    CorruptImages,
    Split,
    evaluation_loader,
    read_splits,
    refuse_shared,
)
from scalekd.data.skipped_files import left_out
from scalekd.engine.loop import resume_command
from scalekd.errors import UserError
from scalekd.evaluation import (
    Accuracy,
    LinearHead,
    collect_features,
    fit_linear_head,
    main_metric,
    measure_accuracy,
)
from scalekd.hardware import pick_compute
from scalekd.keys import TRANSFORMERS
from scalekd.models import Classifier, Teacher
from scalekd.models.families import can_teach
from scalekd.models.folders import TEACHER
from scalekd.models.memory_format import prepare_classifier
from scalekd.models.sources import PYTHON, is_timm
from scalekd.models.teacher import check_patches, outline, resolution_note
from scalekd.progress import plain_lines, watched, working
from scalekd.recipes import Recipe
from scalekd.runs.folder import RunFolder, read_json
from scalekd.runs.lock import made_folder
from scalekd.runs.measured_settings import PROBED
from scalekd.tasks.distill.inputs import check_output, evaluation_images
from scalekd.tasks.distill.run import distill


def probe(
    recipe: Recipe, output: str | Path, *, resolution: int | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Fit a linear head on frozen features and save the whole teacher.

    Args:
        recipe: `teacher` (a vision transformer's name, or weights of any timm model), its
            weights and arguments, `data` and how to load it; other keys are ignored.
        output: Folder for `teacher.safetensors` and `adapt.json`.
        resolution: Image side in pixels; by default that of the weights or the architecture.
        console: Where progress bars are shown.

    Returns:
        The content of `adapt.json`: accuracy, the chosen regularisation, the weights' hash.

    Raises:
        UserError: For any wrong input.
    """
    output = Path(output)
    if recipe.data is None or recipe.teacher is None:
        raise UserError("adapt: needs a teacher and --data")
    check_output(recipe, output)
    train, val = read_splits(recipe.data, recipe.train_split, recipe.val_split, recipe)
    refuse_shared(train, val, (recipe.train_split, recipe.val_split))
    console = console or Console(stderr=True)
    say = plain_lines(console)
    if recipe.teacher_weights is None:  # weights may belong to a student that was trained without labels
        _check_kind(recipe.teacher, recipe.teacher_args)
    classifier = Classifier(
        recipe.teacher,
        weights=recipe.teacher_weights,
        num_classes=None,
        resolution=resolution,
        **recipe.teacher_args,
    )
    teaches = can_teach(classifier.model)
    skipped = left_out({recipe.train_split: train.skipped, recipe.val_split: val.skipped})
    for line in (*_about(classifier, teaches=teaches), *skipped):
        say(line)
    if teaches:
        check_patches(classifier, "resolution")
    with made_folder(output):  # only now, so that a failed check leaves no folder
        corrupt = CorruptImages(recipe.max_corrupt, say)
        head, accuracy = _fit_head(recipe, classifier, train, val, corrupt=corrupt, console=console)
        result = {
            "teacher": TEACHER,
            "mode": "probe",
            "teaches": teaches,
            accuracy.metric: round(accuracy.main, 3),
            f"heldout_{accuracy.metric}": round(head.heldout, 3),
            "regularisation": head.regularisation,
            "corrupt_images": sorted(corrupt.paths),
            "precision": recipe.precision,
            "batch": recipe.batch,
            "sha256": classifier.save(output / TEACHER, train.classes, round(accuracy.main, 2)),
        }
        write_json(output / PROBED, result)
        return result


def _fit_head(
    recipe: Recipe,
    classifier: Classifier,
    train: Split,
    val: Split,
    *,
    corrupt: CorruptImages,
    console: Console,
) -> tuple[LinearHead, Accuracy]:
    """Fit a head for the classes of the training images, and measure it on the validation images."""
    compute = pick_compute(recipe)
    classifier.crop_fraction = recipe.crop_fraction
    prepare_classifier(classifier.to(compute.device).eval(), *compute, channels_last=False)

    def batches(split: Split, what: str) -> Any:
        dataset = evaluation_images(recipe, split, resolution=classifier.resolution)
        return watched(evaluation_loader(dataset, recipe.batch, recipe.workers, corrupt.report), what, console)

    features, labels = collect_features(
        classifier.features, batches(train, "features"), compute=compute, corrupt=corrupt
    )
    with working(f"fitting the head on {len(labels)} images", console):
        head = fit_linear_head(features, labels, balanced=recipe.class_weights == "balanced", seed=recipe.seed)
    classifier.set_head(head.weight, head.bias)
    classifier.multi_label = recipe.multi_label
    accuracy = measure_accuracy(
        classifier,
        batches(val, "evaluate"),
        num_classes=len(train.classes),
        compute=compute,
        corrupt=corrupt,
        multi_label=recipe.multi_label,
    )
    return head, accuracy


def finetune(
    recipe: Recipe,
    output: str | Path,
    *,
    resolution: int | None,
    resume: bool,
    overwrite: bool,
    console: Console | None,
) -> dict[str, Any]:
    """Train the whole teacher on labels, in a `distill` run with method none whose student is the teacher.

    Args:
        recipe: The run's settings, with `teacher` and its weights and arguments.
        output: Folder for the run and `teacher.safetensors`.
        resolution: Image side in pixels; by default that of the weights or the architecture.
        resume: Whether to resume the run in `output`.
        overwrite: Whether to delete a run that is in `output`.
        console: Where to print.

    Returns:
        The run's result, with `teacher` naming the weights file.
    """
    output = Path(output)
    run = RunFolder(output)
    if resume and run.finished:  # it was stopped between its end and the copy below
        result = read_json(run.result)
        if not isinstance(result.get(main_metric(result)), float):
            raise UserError(f"run: {run.result} is damaged; start from scratch with --overwrite")
    else:
        _check_kind(recipe.teacher or "", recipe.teacher_args)
        teacher = Teacher(
            recipe.teacher or "",
            weights=recipe.teacher_weights,
            resolution=resolution,
            pretrained=False,
            **recipe.teacher_args,
        )
        if slow := resolution_note(teacher, "--resolution"):
            plain_lines(console)(f"teacher   {slow}")
        settings = recipe.model_copy(
            update={
                "method": "none",
                "resolution": teacher.resolution,
                "student": recipe.teacher,
                "student_weights": recipe.teacher_weights,
                "student_args": recipe.teacher_args,
                "student_pretrained": recipe.teacher_weights is None,
            }
        )
        resume_with = resume_command(f"adapt {recipe.teacher} --mode finetune", output)
        result = distill(settings, output, resume=resume, overwrite=overwrite, console=console, resume_with=resume_with)
    shutil.copyfile(run.student, output / TEACHER)
    return result | {"teacher": TEACHER, "mode": "finetune", "teaches": True}


def _check_kind(name: str, model_args: dict[str, Any]) -> None:
    """Check that a name specifies a model whose tokens are known, before its weights are downloaded.

    Raises:
        UserError: If it is not; the message says how to train the model instead.
    """
    if name.startswith((PYTHON, TRANSFORMERS)):
        raise UserError(
            f"adapt: fits heads for timm's models only, not for {name}; take timm's form of the model, or distil from "
            "its features only (--logit-weight 0)"
        )
    model = outline(name, model_args)
    if not is_timm(name) or (model is not None and not can_teach(model)):
        raise UserError(
            f"adapt: {name} is not a vision transformer or ConvNeXt from timm; train it on your classes "
            f"with `scalekd distill --method none --student {name} --student-pretrained`"
        )


def _about(classifier: Classifier, *, teaches: bool) -> list[str]:
    """Describe the model; returns lines."""
    slow = resolution_note(classifier, "--resolution") if teaches else None
    role = "teacher" if teaches else "student"
    return [f"{role}   {line}" for line in (str(classifier), *classifier.notes, *([slow] if slow else []))]
