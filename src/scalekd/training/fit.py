"""The training itself: Lightning's loop over a run that is set up, and what it leaves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer

from scalekd.data import TrainingStream, training_loader
from scalekd.data.cache import CacheReader
from scalekd.errors import UserError
from scalekd.hardware import keep_freed_memory
from scalekd.models.weights import file_hash
from scalekd.training.callbacks import DataClock, Display, Keeper
from scalekd.training.folder import write_json
from scalekd.training.inputs import training_images
from scalekd.training.learner import Learner
from scalekd.training.module import DistillationModule
from scalekd.training.setup import Setup


def fit(setup: Setup, resume: bool) -> list[dict[str, Any]]:
    """Train, validate, and write the results."""
    recipe, checkpoint = setup.recipe, setup.group.checkpoint
    step = _read_step(checkpoint) if resume else 0
    for folder in setup.group.runs:
        folder.trim_metrics(step)
    stream = TrainingStream(
        size=len(setup.train),
        batch=recipe.batch,
        epochs=recipe.epochs,
        seed=recipe.seed,
        accumulate=setup.accumulate,
        start=step * setup.accumulate,
        views=recipe.augmented_views,
    )
    dataset = training_images(recipe, setup.train, None if setup.cache is None else CacheReader(setup.cache))
    keep_freed_memory()
    for method in setup.methods if recipe.compile else ():
        method.compile()
    learners = [
        Learner(*parts) for parts in zip(setup.recipes, setup.methods, setup.group.runs, setup.group.names, strict=True)
    ]
    module = DistillationModule(
        learners, steps_per_epoch=setup.steps, accumulate=setup.accumulate, corrupt=setup.corrupt
    )
    trainer = _trainer(setup, learners)
    started = time.perf_counter()
    trainer.fit(
        module,
        training_loader(dataset, stream, recipe.workers),
        setup.val_loader if setup.measured else None,
        ckpt_path=checkpoint if resume else None,
        weights_only=True,
    )
    seconds = round(time.perf_counter() - started, 1)
    return [_conclude(setup, learner, module.step, seconds) for learner in learners]


def _conclude(setup: Setup, learner: Learner, steps: int, seconds: float) -> dict[str, Any]:
    """Write the result of a student."""
    recipe, folder, accuracies = setup.recipe, learner.folder, learner.accuracies
    assert folder is not None
    if not setup.measured:
        learner.save(setup.classes, None)
    elif not accuracies:  # resumed after its last step
        student = learner.eval().to(setup.device).final_student
        measured = setup.measure(lambda images: student(images).logits, student)
        accuracies = {"top1": measured.top1} | ({} if measured.top5 is None else {"top5": measured.top5})
        learner.save(setup.classes, measured.top1)
    result = {
        "method": recipe.method,
        "top1": None,
        **accuracies,
        "teacher_top1": None if setup.teacher_accuracy is None else setup.teacher_accuracy.top1,
        "samples": steps * recipe.batch,
        "steps": steps,
        "seconds_since_start_or_resume": seconds,
        "corrupt_images": sorted(setup.corrupt.paths),
        "device": setup.device.type,
        "dtype": str(setup.dtype).removeprefix("torch."),
        "student": folder.student.name,
        "sha256": file_hash(folder.student),
        **({"group": setup.group.students} if setup.group.students else {}),
    }
    write_json(folder.result, result)
    return result


def _trainer(setup: Setup, learners: Sequence[Learner]) -> Trainer:
    recipe, alone = setup.recipe, len(learners) == 1  # several optimise themselves, see `DistillationModule`
    interval = setup.steps * setup.accumulate * recipe.validate_every
    clock = DataClock()
    return Trainer(
        accelerator=setup.device.type,
        devices=1,
        accumulate_grad_batches=setup.accumulate if alone else 1,
        precision="bf16-mixed" if setup.dtype == torch.bfloat16 else "32-true",
        # The whole run is one stream of batches (see TrainingStream): Lightning counts steps, not epochs.
        max_steps=setup.steps * recipe.epochs * len(learners),
        max_epochs=-1,
        val_check_interval=interval if setup.measured else None,
        limit_val_batches=None if setup.measured else 0,
        sync_batchnorm=recipe.sync_batchnorm,
        check_val_every_n_epoch=None,
        gradient_clip_val=recipe.clip if alone else None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=[logger for learner in learners for logger in learner.loggers],
        callbacks=[
            Display(
                setup.console,
                clock,
                batch=recipe.batch,
                steps_per_epoch=setup.steps,
                epochs=recipe.epochs,
                interval=None if setup.measured else interval,
            ),
            Keeper(setup.group, setup.classes, interval=interval, validates=setup.measured),
        ],
        profiler=clock,
        default_root_dir=setup.group.path,
    )


def _read_step(checkpoint: Path) -> int:
    """The optimiser step that a checkpoint was written at; Lightning counts those of every optimiser."""
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        return int(content["global_step"]) // len(content["optimizer_states"])
    except Exception as error:
        raise UserError(
            f"resume: {checkpoint} cannot be read ({type(error).__name__}); start anew with --overwrite"
        ) from error
