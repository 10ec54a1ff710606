"""The training itself: Lightning's loop over a run that is set up, and what it leaves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from scalekd.data import TrainingStream, seeded, training_loader
from scalekd.data.cache import CacheReader
from scalekd.errors import UserError
from scalekd.hardware import autocast, keep_freed_memory
from scalekd.models.weights import file_hash
from scalekd.training.callbacks import DataClock, Display, Keeper
from scalekd.training.folder import write_json
from scalekd.training.inputs import training_images
from scalekd.training.learner import Learner
from scalekd.training.module import DistillationModule
from scalekd.training.setup import Setup


def fit(setup: Setup, resume: bool) -> list[dict[str, Any]]:
    """Train, validate, and write the results."""
    recipe, checkpoint, processes = setup.recipe, setup.group.checkpoint, setup.processes
    step = _read_step(checkpoint) if resume else 0
    if processes.first:
        for folder in setup.group.runs:
            folder.trim_metrics(step)
    stream = TrainingStream(
        size=len(setup.train),
        batch=recipe.batch,
        epochs=recipe.epochs,
        seed=recipe.seed,
        accumulate=setup.accumulate,
        rank=processes.rank,
        count=processes.count,
        start=step * setup.accumulate,
        views=recipe.augmented_views,
    )
    dataset = training_images(recipe, setup.train, None if setup.cache is None else CacheReader(setup.cache))
    keep_freed_memory()
    for method in setup.methods if recipe.compile else ():
        method.compile()
    learners = [
        Learner(*parts, processes=processes, batchnorm=setup.batchnorm)
        for parts in zip(setup.recipes, setup.methods, setup.group.runs, setup.group.names, strict=True)
    ]
    module = DistillationModule(
        learners, steps_per_epoch=setup.steps, accumulate=setup.accumulate, corrupt=setup.corrupt
    )
    if processes.count > 1:
        _leave_out_unused(module, setup)
    trainer = _trainer(setup, learners)
    processes.gather(None)
    processes.training = True
    started = time.perf_counter()
    trainer.fit(
        module,
        training_loader(dataset, stream, recipe.workers),
        setup.val_loader if setup.measured else None,
        ckpt_path=checkpoint if resume else None,
        weights_only=True,
    )
    seconds = round(time.perf_counter() - started, 1)
    corrupt = sorted(set().union(*processes.gather(setup.corrupt.paths)))
    measured = [_measured(setup, learner) for learner in learners]
    facts = {
        "samples": module.step * recipe.batch,
        "steps": module.step,
        "seconds_since_start_or_resume": seconds,
        "corrupt_images": corrupt,
    }
    results = processes.first_says(
        lambda: [_conclude(setup, *parts, facts) for parts in zip(learners, measured, strict=True)]
    )
    processes.training = False
    return results


def _measured(setup: Setup, learner: Learner) -> dict[str, float]:
    """A student's accuracies in percent; none where they are not measured."""
    if not setup.measured or learner.accuracies:
        return learner.accuracies
    student = learner.eval().to(setup.device).final_student  # resumed after its last step
    measured = setup.measure(lambda images: student(images).logits, student)
    return {"top1": measured.top1} | ({} if measured.top5 is None else {"top5": measured.top5})


def _conclude(setup: Setup, learner: Learner, accuracies: dict[str, float], facts: dict[str, Any]) -> dict[str, Any]:
    """Write the result of a student."""
    recipe, folder = setup.recipe, learner.folder
    assert folder is not None
    if not learner.accuracies:
        learner.save(setup.classes, accuracies.get("top1"))
    result = {
        "method": recipe.method,
        "top1": None,
        **accuracies,
        "teacher_top1": None if setup.teacher_accuracy is None else setup.teacher_accuracy.top1,
        **facts,
        "processes": setup.processes.count,
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
        devices=setup.processes.local_count,
        num_nodes=setup.processes.count // setup.processes.local_count,
        strategy=_strategy() if setup.processes.count > 1 else "auto",
        accumulate_grad_batches=setup.accumulate if alone else 1,
        precision="bf16-mixed" if setup.dtype == torch.bfloat16 else "32-true",
        # The whole run is one stream of batches (see TrainingStream): Lightning counts steps, not epochs.
        max_steps=setup.steps * recipe.epochs * len(learners),
        max_epochs=-1,
        val_check_interval=interval if setup.measured else None,
        limit_val_batches=None if setup.measured else 0,
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


def _strategy() -> DDPStrategy:
    """Gradients are averaged in place; buffers are shared at validations only (`DistillationModule.share_buffers`)."""
    return DDPStrategy(find_unused_parameters=False, broadcast_buffers=False, gradient_as_bucket_view=True)


def _leave_out_unused(module: DistillationModule, setup: Setup) -> None:
    """Tell DDP which parameters get no gradient (a last norm, say, where nobody reads the logits): it waits for all.

    They are those that the loss of two random images does not lead back to. The optimiser leaves them alone as it
    does in one process, which a search in each step (`find_unused_parameters`) would not change.
    """
    (learner,) = module.learners
    method, side = learner.method.to(setup.device).train(), setup.recipe.resolution
    kept = {name: buffer.clone() for name, buffer in method.named_buffers()}
    images = torch.rand(2, 3, side, side, device=setup.device)
    labels = None if setup.recipe.labels == "none" else torch.zeros(2, dtype=torch.long, device=setup.device)
    with seeded(setup.recipe.seed), autocast(setup.device, setup.dtype):
        total = method(images, labels).total
    with torch.no_grad():
        for name, buffer in method.named_buffers():
            buffer.copy_(kept[name])
    waiting, seen = [total.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    used = {id(node.variable) for node in seen if hasattr(node, "variable")}
    unused = [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in used]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, unused)  # type: ignore[no-untyped-call]


def _read_step(checkpoint: Path) -> int:
    """The optimiser step that a checkpoint was written at; Lightning counts those of every optimiser."""
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        return int(content["global_step"]) // len(content["optimizer_states"])
    except Exception as error:
        raise UserError(
            f"resume: {checkpoint} cannot be read ({type(error).__name__}); start anew with --overwrite"
        ) from error
