"""How a run of any task begins, trains and goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from pytorch_lightning import Trainer, seed_everything
from rich.console import Console

from scalekd.data import CorruptImages
from scalekd.downstream.backbone import Backbone, weights_in
from scalekd.downstream.keeper import Keeper
from scalekd.downstream.keys import Transfer
from scalekd.downstream.module import TransferModule
from scalekd.errors import UserError
from scalekd.hardware import keep_freed_memory, pick_device, pick_dtype
from scalekd.models.weights import file_hash
from scalekd.training.checkpoints import Checkpoint
from scalekd.training.folder import RunFolder
from scalekd.training.group import Group
from scalekd.training.logs import JsonLinesLogger, TensorBoardEvents, quieten_lightning
from scalekd.training.stopping import Interrupted, Stop

R = TypeVar("R", bound=Transfer)


@dataclass(frozen=True)
class Run:
    """A run whose folder is ours.

    Attributes:
        recipe: Its settings.
        group: Its folder, as a group of one.
        stop: Whether somebody asks to stop.
        resume: Whether it goes on.
        console: Where to print.
    """

    recipe: Transfer
    group: Group
    stop: Stop
    resume: bool
    console: Console

    @property
    def folder(self) -> RunFolder:
        """The run's folder."""
        return self.group.runs[0]

    @property
    def say(self) -> Callable[[str], None]:
        """Prints a line as it is."""
        return partial(self.console.print, highlight=False, soft_wrap=True, markup=False)

    def corrupt(self) -> CorruptImages:
        """A counter of unreadable images."""
        return CorruptImages(self.recipe.max_corrupt, self.say)

    def prepare(self, backbone: Backbone, inputs: dict[str, Any]) -> None:
        """Write what the run starts from, last of all: what cannot start must not delete another run."""
        weights = {} if backbone.file is None else {"backbone weights": file_hash(backbone.file)}
        self.group.prepare([self.recipe], [inputs | weights], resume=self.resume)


@contextmanager
def begun(recipe: Transfer, output: Path, *, resume: bool, overwrite: bool, console: Console | None) -> Iterator[Run]:
    """Claim the folder of a run.

    Args:
        recipe: The run's settings.
        output: Its folder.
        resume: Whether to go on with the run in `output`.
        overwrite: Whether to delete a run that is in `output`.
        console: Where to print; standard error by default.

    Raises:
        UserError: If the folder is another run's or cannot be written, or there is nothing to go on with.
    """
    quieten_lightning()
    recipe = located(recipe)
    with Stop() as stop:
        run = Run(recipe, Group(output), stop, resume, console or Console(stderr=True))
        with run.group.claimed(run.say, resume=resume):
            run.group.check([recipe], resume=resume, overwrite=overwrite)
            yield run


def named_backbone(recipe: Transfer) -> str:
    """The backbone's name or path.

    Raises:
        UserError: If there is none.
    """
    if recipe.backbone is None:
        raise UserError("backbone: none is given; give --backbone (a run's folder, a weights file or a timm name)")
    return recipe.backbone


def located(recipe: R) -> R:
    """The recipe with the weights file of its backbone in place of the folder that holds it.

    Raises:
        UserError: If there is no backbone, or the folder holds no weights.
    """
    named = named_backbone(recipe)
    if not os.path.isdir(named):
        return recipe
    return recipe.model_copy(update={"backbone": os.path.abspath(weights_in(Path(named)))})


def build_backbone(recipe: Transfer, *, spread: bool = False) -> Backbone:
    """The backbone that a recipe names; what comes after it draws from the seed, whatever it has drawn.

    Raises:
        UserError: If it names none, or none that can be built.
    """
    seed_everything(recipe.seed, verbose=False)
    backbone = Backbone(
        named_backbone(recipe),
        weights=recipe.backbone_weights,
        pretrained=recipe.backbone_pretrained,
        spread=spread,
        **recipe.backbone_args,
    )
    seed_everything(recipe.seed, verbose=False)
    return backbone


def fit(
    run: Run,
    module: TransferModule,
    training: Callable[[int], Iterable[Any]],
    validation: Iterable[Any],
    save: Callable[[], object],
) -> dict[str, Any]:
    """Train and validate.

    Args:
        run: The run.
        module: What is trained.
        training: The training batches from a micro-batch on.
        validation: The validation batches.
        save: Writes the model's weights.

    Returns:
        What the result says of the training: steps, samples, seconds and so on.
    """
    recipe, device = run.recipe, pick_device(run.recipe.accelerator)
    dtype = pick_dtype(recipe.precision, device)
    checkpoint = _find_checkpoint(run)
    step = 0 if checkpoint is None else checkpoint.run["step"]
    keeper = Keeper(run.folder, run.group.checkpoints, run.stop, save, run.console)
    keep_freed_memory()
    trainer = Trainer(
        accelerator=device.type,
        devices=1,
        accumulate_grad_batches=recipe.accumulate,
        precision="bf16-mixed" if dtype == torch.bfloat16 else "32-true",
        max_steps=module.steps,  # one stream of batches: Lightning counts steps, not epochs
        max_epochs=-1,
        val_check_interval=module.interval * recipe.accumulate,
        check_val_every_n_epoch=None,
        gradient_clip_val=recipe.clip,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=[JsonLinesLogger(run.folder.metrics), TensorBoardEvents(run.folder.tensorboard)],
        callbacks=[keeper],
        plugins=[run.group.checkpoints],
        default_root_dir=run.folder.path,
    )
    try:
        trainer.fit(
            module,
            training(step * recipe.accumulate),
            validation,
            ckpt_path=None if checkpoint is None else checkpoint.path,
            weights_only=True,
        )
    except UserError as error:
        if run.stop.asked is None:
            raise
        raise Interrupted(f"stopped by {run.stop.asked.name}, while: {error}", run.stop.asked) from error
    return {
        "steps": module.global_step,
        "samples": module.global_step * recipe.batch,
        "seconds": round(keeper.seconds, 1),
        "corrupt_images": sorted(module.corrupt.paths),
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
    }


def _find_checkpoint(run: Run) -> Checkpoint | None:
    """The newest checkpoint of a run that goes on, with its logs cut to what they were then."""
    if not run.resume:
        return None
    checkpoint = run.group.checkpoints.newest(run.say)
    if checkpoint is None:
        run.say(f"warning: no checkpoint is in {run.group.checkpoints.folder}; the run begins anew")
    run.folder.cut_logs({} if checkpoint is None else checkpoint.run["logs"])
    return checkpoint
