"""From recipes to all that a run needs, with the checks that can be made before its first step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from scalekd.data import Batch, CorruptImages, evaluation_loader, seed_all, seeded
from scalekd.data.aside import left_out
from scalekd.data.cache import TeacherCache, open_cache
from scalekd.engine.batchnorm import batchnorm_over
from scalekd.engine.processes import Processes, check_devices
from scalekd.engine.sharding import shard_teacher
from scalekd.errors import UserError, printable
from scalekd.evaluation import Accuracy, measure_accuracy
from scalekd.hardware import Compute, autocast, pick_device, pick_dtype
from scalekd.methods.base import Method
from scalekd.methods.outputs import Losses
from scalekd.methods.registry import METHODS
from scalekd.models import Teacher
from scalekd.models.layout import prepare
from scalekd.planner import USABLE, UnpredictableError, available_memory, held_memory, largest_batch
from scalekd.progress import plain_lines, watched, working
from scalekd.recipes import Recipe
from scalekd.runs.folder import weight_hashes
from scalekd.runs.group import Group, naming
from scalekd.tasks.distill.build import build_method, build_student, build_teacher, describe, head_width
from scalekd.tasks.distill.caching import compare_sample, describe_cache
from scalekd.tasks.distill.inputs import evaluation_images, read_data, training_images
from scalekd.tasks.distill.signs import few_steps
from scalekd.tasks.distill.trial import try_training


@dataclass
class Setup:
    """The parts of a run, of one student or of several, in the order in which they come to be; then it can be trained.

    Recipes differ in `student` only.
    """

    recipes: list[Recipe]
    group: Group
    console: Console
    processes: Processes

    @property
    def recipe(self) -> Recipe:
        """What all share."""
        return self.recipes[0]

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the models only."""
        return self.recipe.strategy == "fsdp" and self.processes.count > 1

    def build(self) -> None:
        """Read the data's listing and build the pairs; touches no file of the run."""
        recipe, count = self.recipe, self.processes.count
        self.notes: list[str] = []  # to be printed where nothing worse is found
        self.train, self.val = read_data(recipe)
        self.classes = self.val.classes
        self.device = pick_device(recipe.accelerator)
        self.dtype = pick_dtype(recipe.precision, self.device)
        self._check_processes()
        self.steps = len(self.train) // recipe.batch
        warn = self.console if self.processes.first else Console(stderr=True)  # each reads images of its own
        self.corrupt = CorruptImages(recipe.max_corrupt, plain_lines(warn))
        self.teacher = build_teacher(recipe, self.classes) if recipe.method != "none" else None
        self.cache = None
        if self.teacher is not None and recipe.cache is not None:
            wanted = describe_cache(recipe, self.teacher, self.train, self.dtype)
            self.cache = open_cache(recipe.cache, *wanted, recipe.augmented_views)
        self.methods = [self._join(*named) for named in zip(self.recipes, self.group.names, strict=True)]
        if recipe.batch > len(self.train):  # after the models: a name that is wrong is to be told first
            raise UserError(
                f"batch: {recipe.batch} is larger than the {len(self.train)} training images; "
                f"set it to {len(self.train)} or less"
            )
        self.measured = len(self.val) > 0 and self.methods[0].student.num_classes > 0
        for method in self.methods:
            # FSDP takes parameters in their own layout only.
            prepare(method, self.device, self.dtype, channels_last=recipe.channels_last and not self.sharded)
        if self.sharded and self.teacher is not None:
            shard_teacher(self.teacher, self.device, self.probe)
        with working("planning: how many images fit into memory at once?", self.console):
            at_once = recipe.micro_batch or min(self.processes.gather(self._fitting_batch()))
        # Part of the recipes, for the runs are to be repeatable.
        self.recipes = [recipe.model_copy(update={"micro_batch": at_once}) for recipe in self.recipes]
        self.accumulate = recipe.batch // (at_once * count)
        self.batchnorm = batchnorm_over(recipe, self.processes, at_once)
        validation = evaluation_images(recipe, self.val)
        self.val_loader = evaluation_loader(
            validation, at_once, recipe.workers, self.say, rank=self.processes.rank, count=count
        )

    def try_training(self) -> None:
        """Take a training step of each pair, whose failures are thus told before anything is written."""
        if self.sharded:  # nowhere whole; `shard_trained` runs it
            return
        over, count = self.recipe.batchnorm_over, self.processes.count
        at_once = self.recipe.micro_batch or 1
        together = over if isinstance(over, int) else at_once * (count if over == "all" else 1)
        for recipe, method, name in zip(self.recipes, self.methods, self.group.names, strict=True):
            with naming(name):
                method.to(self.device)
                try_training(
                    method,
                    recipe,
                    at_once=at_once,
                    together=together,
                    # Other processes have no part in it.
                    batchnorm=self.batchnorm if count == 1 else nullcontext(),
                    dtype=self.dtype,
                    say=self.say,
                )

    def _check_processes(self) -> None:
        """Make sure that the processes can share the batch and the validation."""
        recipe, count = self.recipe, self.processes.count
        if count == 1:
            return
        if len(self.recipes) > 1:
            raise UserError(f"student: several students train in one process, not in {count}; give one --student")
        check_devices(self.processes, recipe.accelerator, self.device)
        if recipe.batch % (count * (recipe.micro_batch or 1)):
            at_once = f" with {recipe.micro_batch} images at once (micro_batch)" if recipe.micro_batch else ""
            raise UserError(f"batch: {recipe.batch} cannot be shared equally by {count} processes{at_once}")
        if self.sharded and recipe.micro_batch is None:
            raise UserError("micro_batch: strategy fsdp needs it, as what fits is predicted for whole models; give one")
        for key, value in (("compile", True), ("optimizer", "lamb")):
            if self.sharded and getattr(recipe, key) == value:
                raise UserError(f"{key}: {value} cannot be joined with strategy fsdp; change one of them")
        if 0 < len(self.val) < count:
            raise UserError(f"data: {len(self.val)} validation image(s) for {count} processes; start fewer")

    def _join(self, recipe: Recipe, name: str) -> Method:
        """A student and its method, with the random weights that they would have alone."""
        with naming(name):
            # Seeded here and again below, so that all methods start from the same student.
            seed_all(recipe.seed)
            student = build_student(recipe, head_width(recipe, self.teacher, self.classes), self.classes)
            seed_all(recipe.seed)
            return build_method(recipe, self.teacher, student)

    def _fitting_batch(self) -> int:
        """As many images of the batch as fit into the device's memory at once, whichever student's turn it is."""
        recipe, share = self.recipe, self.recipe.batch // self.processes.count
        free = available_memory(self.device)  # before the methods move there, which is part of the prediction
        if self.device.type == "cpu":
            free //= self.processes.local_count
        held = [
            held_memory(method.to(self.device), optimizer=recipe.optimizer, ema=recipe.ema is not None)
            for method in self.methods
        ]
        sizes = []
        for method, own, name in zip(self.methods, held, self.group.names, strict=True):
            try:
                with naming(name):
                    size = largest_batch(
                        method,
                        budget_bytes=round(USABLE * free) - (sum(held) - own),
                        batch=share,
                        optimizer=recipe.optimizer,
                        ema=recipe.ema is not None,
                        dtype=self.dtype,
                        even=recipe.mixup > 0 or recipe.cutmix > 0,
                    )
            except UnpredictableError as error:
                self.notes.append(f"warning: {error}; taking the whole batch of {share} at once")
                size = share
            sizes.append(size)
        return self._joinable(min(sizes), share)

    def probe(self, *, training: bool = False) -> Losses:
        """The losses of two random images, where the models are; training, batch norm's statistics are changed."""
        (method,), side = self.methods, self.recipe.resolution
        device = next(method.parameters()).device
        images = torch.rand(2, 3, side, side, device=device)
        labels = None if self.recipe.labels == "none" else torch.zeros(2, dtype=torch.long, device=device)
        with seeded(self.recipe.seed), autocast(device, self.dtype):
            losses: Losses = method.train(training)(images, labels)
        method.train()
        return losses

    def _joinable(self, most: int, share: int) -> int:
        """The largest part of a process's `share` of the batch, `most` at most, that `batchnorm_over` can do with."""
        over, count = self.recipe.batchnorm_over, self.processes.count
        if not isinstance(over, int):
            return most
        sizes = [n for n in range(over, most + 1, over) if share % n == 0]
        return max(sizes, default=over // count if over % count == 0 and over // count <= most else most)

    def say(self, text: str) -> None:
        """Print text as it is, file names with brackets included."""
        plain_lines(self.console)(text)

    def announce(self) -> None:
        """Print the plan, and measure the teacher where it has the data's classes."""
        for note in self.notes:
            self.say(note)
        for method in self.methods:
            self.say(describe(method))
        number = "bf16" if self.dtype == torch.bfloat16 else "float32"
        recipe = self.recipe
        unlabelled = f" ({self.train.unlabelled} without label)" if self.train.unlabelled else ""
        self.say(
            f"data      {len(self.train)} training images{unlabelled} and {len(self.val)} validation images, "
            f"{len(self.classes)} classes; {self.device.type}, {number}"
        )
        for line in left_out({recipe.train_split: self.train.aside, recipe.val_split: self.val.aside}):
            self.say(line)
        rest = len(self.train) % recipe.batch
        unused = f"; {rest} images that do not fill a batch are left out of each epoch" if rest else ""
        self.say(f"schedule  {recipe.epochs} epochs of {self.steps} steps of {recipe.batch} images{unused}")
        if few := few_steps(len(self.train), recipe.batch, recipe.epochs):
            self.say(few)
        count, bare = self.processes.count, recipe.batchnorm_over == "process"
        each = f" in each of {count} processes" if count > 1 else ""
        over = f"batch norm over {recipe.batchnorm_over} images"
        if self.accumulate * count > 1:
            self.say(
                f"batch     {recipe.batch} as {self.accumulate} times {recipe.micro_batch} images at once{each}; "
                + ("batch norm sees these: compare runs of equal micro_batch" if bare else over)
            )
            if compares := METHODS[recipe.method].compares:
                self.say(f"warning: {recipe.method}'s {compares} is over the images at once, not over the batch")
        if not self.measured:
            self.say("accuracy  not measured: " + ("no validation images" if not len(self.val) else "no head to train"))
        if self.cache is not None:
            self.say(self._check_cache(self.cache))
        self.teacher_accuracy = None
        known = self.teacher is not None and self.teacher.num_classes == len(self.classes)
        if self.measured and self.teacher is not None and known and recipe.check_teacher:
            self.teacher_accuracy = self._check_teacher(self.teacher)
            self.say(f"teacher   top1 {self.teacher_accuracy.top1:.2f}% on the validation images")

    def _check_cache(self, cache: TeacherCache) -> str:
        """Compare a sample of the cache with the teacher; a line that says how they agree."""
        assert self.teacher is not None
        agreement = compare_sample(
            cache,
            training_images(self.recipe, self.train),
            self.teacher.to(self.device),
            views=self.recipe.augmented_views,
            batch=self.recipe.batch // self.accumulate,
            device=self.device,
        )
        views = self.recipe.augmented_views
        return (
            f"cache     teacher outputs from {printable(cache.path)} ({cache.layout.cache_format}, {views} view(s), "
            f"{agreement})"
        )

    def _check_teacher(self, teacher: Teacher) -> Accuracy:
        """Measure the teacher on the validation images; near chance is an error."""
        accuracy = self.measure(lambda images: teacher(images).logits, teacher.to(self.device))
        chance = 100 / len(self.classes)
        if self.methods[0].logit_weight > 0 and accuracy.top1 < chance + 0.1 * (100 - chance):
            raise UserError(
                f"teacher: {teacher.name} scores {accuracy.top1:.1f}% on {self.val.root}, "
                f"where chance is {chance:.1f}%; its classes are probably "
                "in another order, or it was trained too little, its head perhaps never (see `scalekd adapt`). "
                "--no-check-teacher goes on all the same"
            )
        return accuracy

    def measure(self, logits: Callable[[Tensor], Tensor], model: nn.Module) -> Accuracy:
        """Accuracy on the validation images of `logits`, which reads `model`."""
        assert not model.training
        return measure_accuracy(
            logits,
            self._own_validation(),
            num_classes=len(self.classes),
            compute=Compute(self.device, self.dtype),
            corrupt=self.corrupt,
            blank=torch.zeros(1, 3, self.recipe.resolution, self.recipe.resolution) if self.sharded else None,
        )

    def _own_validation(self) -> Iterator[Batch]:
        """This process's validation images; ends when all processes are through with theirs."""
        yield from watched(self.val_loader, "measure", self.console)
        self.processes.gather(None)

    def inputs(self) -> list[dict[str, Any]]:
        """What each run reads: the listing of each split, the hashes of local weights, rounded teacher outputs.

        Raises:
            UserError: If not all processes read the same.
        """
        common: dict[str, Any] = {"training data": self.train.fingerprint, "validation data": self.val.fingerprint}
        if self.cache is not None and not self.cache.layout.exact:
            common["teacher outputs"] = f"from a cache, as {self.recipe.cache_format}"
        own = [common | weight_hashes(recipe) for recipe in self.recipes]
        everyone = self.processes.gather(own)
        for rank, other in enumerate(everyone):
            if other != everyone[0]:
                what = next(k for k, v in other[0].items() if v != everyone[0][0].get(k))
                raise UserError(f"data: {what} of process {rank} are not those of process 0; give all the same")
        return own
