"""The training itself: Lightning's loop over a run that is set up, and what it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from scalekd.data import TrainingStream, training_loader
from scalekd.data.cache import CacheReader
from scalekd.energy import EnergyMeter
from scalekd.errors import UserError
from scalekd.hardware import autocast, keep_freed_memory
from scalekd.method import Method
from scalekd.models.weights import file_hash
from scalekd.recipes import Recipe
from scalekd.training.callbacks import DataClock, Display
from scalekd.training.folder import write_json
from scalekd.training.inputs import training_images
from scalekd.training.keeper import Keeper
from scalekd.training.learner import Learner
from scalekd.training.live import Live, Watcher
from scalekd.training.module import DistillationModule
from scalekd.training.setup import Setup
from scalekd.training.sharding import ShardedStrategy, shard_trained
from scalekd.training.stopping import Interrupted, Stop


def fit(setup: Setup, stop: Stop, *, resume: bool, live: Live | None) -> list[dict[str, Any]]:
    """Train, validate, and write the results."""
    recipe, group, processes = setup.recipe, setup.group, setup.processes
    checkpoint = processes.first_says(lambda: group.checkpoints.newest(setup.say)) if resume else None
    if resume and checkpoint is None:
        processes.first_says(lambda: _begin_anew(setup))
    step = 0 if checkpoint is None else checkpoint.run["step"]
    if checkpoint is not None:
        setup.say(f"resume    from {checkpoint.path.name}: step {step} of {setup.steps * recipe.epochs} is done")
    if processes.first and resume:
        for number, folder in enumerate(group.runs):
            folder.cut_logs({} if checkpoint is None else checkpoint.run["logs"][number])
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
        Learner(*parts, processes=processes, batchnorm=setup.batchnorm, watcher=_watcher(setup, live, *parts[:2]))
        for parts in zip(setup.recipes, setup.methods, setup.group.runs, setup.group.names, strict=True)
    ]
    module = DistillationModule(
        learners, steps_per_epoch=setup.steps, accumulate=setup.accumulate, corrupt=setup.corrupt
    )
    if checkpoint is not None:
        checkpoint.check_fits(module)
    if setup.sharded:
        shard_trained(learners[0].method, learners[0].ema, setup.device, setup.probe)
    elif processes.count > 1:
        _leave_out_unused(module, setup)
    keeper = _keeper(setup, stop)
    trainer = _trainer(setup, learners, keeper)
    processes.gather(None)
    processes.training = True
    try:
        trainer.fit(
            module,
            training_loader(dataset, stream, recipe.workers, setup.say),
            setup.val_loader if setup.measured else None,
            ckpt_path=None if checkpoint is None else checkpoint.path,
            weights_only=True,
        )
    except UserError as error:
        if stop.asked is None:
            raise
        raise Interrupted(f"stopped by {stop.asked.name}, while: {error}", stop.asked) from error
    for learner in learners:
        learner.save(setup.classes, learner.accuracies.get("top1"))
    facts = {
        "samples": module.step * recipe.batch,
        "steps": module.step,
        "seconds": round(keeper.seconds, 1),
        "energy": keeper.energy,
        "corrupt_images": sorted(set().union(*processes.gather(setup.corrupt.paths))),
    }
    results = processes.first_says(lambda: [_conclude(setup, learner, facts) for learner in learners])
    processes.training = False
    return results


def _begin_anew(setup: Setup) -> None:
    """Say that a run to be resumed has written no checkpoint yet; one of an earlier revision is not passed over."""
    earlier = setup.group.checkpoints.folder / "last.ckpt"
    if earlier.exists():
        raise UserError(f"resume: {earlier} is of an earlier revision, which is not read; start anew with --overwrite")
    setup.say(f"warning: no checkpoint is in {setup.group.checkpoints.folder}; the run begins anew")


def _watcher(setup: Setup, live: Live | None, recipe: Recipe, method: Method) -> Watcher | None:
    """What shows a pair at validations: the first process, unless its weights are sharded, which takes all of them."""
    if live is None or not setup.processes.first or setup.sharded or not setup.measured:
        return None
    look = live(recipe, method, setup.val)
    return None if look is None else Watcher(look, method, partial(autocast, setup.device, setup.dtype), setup.say)


def _conclude(setup: Setup, learner: Learner, facts: dict[str, Any]) -> dict[str, Any]:
    """Write the result of a student."""
    recipe, folder, accuracies = setup.recipe, learner.folder, learner.accuracies
    assert folder is not None
    result = {
        "method": recipe.method,
        "top1": None,
        **accuracies,
        "teacher_top1": None if setup.teacher_accuracy is None else setup.teacher_accuracy.top1,
        **facts,
        "skipped_steps": learner.skipped_steps,
        "processes": setup.processes.count,
        "device": setup.device.type,
        "dtype": str(setup.dtype).removeprefix("torch."),
        "student": folder.student.name,
        "sha256": file_hash(folder.student),
        **({"group": setup.group.students} if setup.group.students else {}),
    }
    write_json(folder.result, result)
    return result


def _interval(setup: Setup) -> int:
    """Micro-batches between validations."""
    return setup.steps * setup.accumulate * setup.recipe.validate_every


def _keeper(setup: Setup, stop: Stop) -> Keeper:
    return Keeper(
        setup.group,
        stop,
        setup.classes,
        interval=_interval(setup),
        validation=setup.val_loader if setup.measured else None,
        keep=setup.recipe.keep,
        minutes=setup.recipe.checkpoint_minutes,
        meter=EnergyMeter(setup.processes.local_count if setup.device.type == "cuda" else 0),
        say=setup.say,
    )


def _trainer(setup: Setup, learners: Sequence[Learner], keeper: Keeper) -> Trainer:
    recipe, alone = setup.recipe, len(learners) == 1  # several optimise themselves, see `DistillationModule`
    interval = _interval(setup)
    clock = DataClock()
    return Trainer(
        accelerator=setup.device.type,
        devices=setup.processes.local_count,
        num_nodes=setup.processes.count // setup.processes.local_count,
        strategy=_strategy(setup),
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
            keeper,
        ],
        plugins=[setup.group.checkpoints],
        profiler=clock,
        default_root_dir=setup.group.path,
    )


def _strategy(setup: Setup) -> DDPStrategy | str:
    """Gradients are averaged in place; buffers are shared at validations only (`DistillationModule.share_buffers`)."""
    if setup.processes.count == 1:
        return "auto"
    if setup.sharded:
        return ShardedStrategy()
    return DDPStrategy(find_unused_parameters=False, broadcast_buffers=False, gradient_as_bucket_view=True)


def _leave_out_unused(module: DistillationModule, setup: Setup) -> None:
    """Tell DDP which parameters get no gradient (a last norm, say, where nobody reads the logits): it waits for all.

    They are those that the loss of two random images does not lead back to. The optimiser leaves them alone as it
    does in one process, which a search in each step (`find_unused_parameters`) would not change.
    """
    (learner,) = module.learners
    method = learner.method.to(setup.device)
    kept = {name: buffer.clone() for name, buffer in method.named_buffers()}
    total = setup.probe(training=True).total
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
