"""The typed recipe: every key of a run, its default and what it means. Each key is also a flag of the command line."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from scalekd.errors import UserError
from scalekd.keys import (
    FIXED_ARGS,
    File,
    Fraction,
    Keys,
    Map,
    NonNegative,
    Place,
    Positive,
    Separator,
    SplitName,
    Undecayed,
)
from scalekd.methods.parts import resolve_parts
from scalekd.methods.registry import METHODS, MethodKeys
from scalekd.recipes.other_names import suggest

K = TypeVar("K", bound="Keys")


class TeacherKeys(Keys):
    """Teacher."""

    teacher: str | None = Field(default=None, min_length=1)
    """timm name (hub weights are loaded unless teacher_weights is given) or a weights file written by scalekd."""
    teacher_weights: File | None = None
    """safetensors file for the timm name."""
    teacher_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of timm.create_model, as YAML: '{global_pool: avg}'."""
    teacher_resolution: Positive | None = None
    """Image side in pixels the teacher sees (images are resized). Default: its weights' or architecture's own."""
    tail_blocks: Positive | None = None
    """Blocks in the tail of a teacher with equal blocks (ViT, BEiT, EVA, ...). Default: 2. A Swin's tail is fixed."""
    check_teacher: bool = True
    """Whether the teacher is measured on the validation images at the start; where its logits are used, one near chance
    is an error."""
    cache: File | None = None
    """Folder of caches that `scalekd cache` fills: the teacher's outputs are read there instead of running it."""
    cache_format: Literal["bf16", "int8"] = "bf16"
    """How a cache keeps tokens: as bf16, or in half the space as int8 with a scale per token."""


class StudentKeys(Keys):
    """Student."""

    student: str | None = Field(default=None, min_length=1)
    """timm name, torchvision:NAME, python:module.callable (your own code), or a weights file written by scalekd."""
    student_maps: tuple[Map, Map] | None = None
    """Maps S_prev and S_last: indices (timm) or module names. Default: the paper's choice for timm models."""
    student_weights: File | None = None
    """safetensors file to start from."""
    student_pretrained: bool = False
    """Whether to start from the hub's weights."""
    student_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of timm.create_model (or what else builds it), as YAML: '{drop_path_rate: 0.05}'."""


class DataKeys(Keys):
    """Data and augmentation."""

    data: Place | None = None
    """Folder with a folder for each split, in which there is one for each class: DATA/train/cat/1.jpg. Or a list (.csv,
    .tsv, .txt, .jsonl), tar shards (a folder, or a pattern as /data/{split}-{000..146}.tar, URLs too), hf:NAME,
    torchvision:NAME; see docs/data.md."""
    train_split: SplitName = "train"
    """Name of the training split: its folder's, list's, shards'."""
    val_split: SplitName = "val"
    """Name of the validation split."""
    unlabelled_split: SplitName = "unlabelled"
    """Name of a split of images without labels (in any subfolders); used beside the training split where it exists."""
    labels: Literal["folders", "none"] = "folders"
    """folders: each class is one. none: learn from the teacher alone; classes and accuracy come from the validation
    split if there is one."""
    resolution: int = Field(default=224, gt=0, le=16384)
    """Image side in pixels the student is trained and evaluated at."""
    crop_fraction: float = Field(default=0.875, ge=0.1, le=1)
    """Evaluation: resize the short side to resolution / crop_fraction, then cut the centre."""
    crop_scale: tuple[Fraction, Fraction] = (0.08, 1.0)
    """Range of the random crop's area, as a share of the image."""
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    """Range of the random crop's aspect ratio."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    rand_augment: str | None = None
    """RandAugment in timm's notation, such as rand-m7-mstd0.5-inc1."""
    erasing: Fraction = 0.0
    """Probability of random erasing."""
    mixup: NonNegative = 0.0
    """Mixup alpha; 0 is off."""
    cutmix: NonNegative = 0.0
    """Cutmix alpha; 0 is off."""
    augmentation_epochs: Positive | None = None
    """Epochs after which the augmentations repeat: epoch e is augmented as epoch e mod this. Default: never."""
    workers: int = Field(default=2, ge=0, le=1024)
    """Processes that load images. The result does not depend on it."""
    max_corrupt: int = Field(default=10, ge=0, lt=2**31)
    """Unreadable images to skip before the run stops."""
    max_pixels: Positive = 178_956_970
    """Pixels an image may have; larger ones count as unreadable."""
    data_patience: NonNegative = 60.0
    """Seconds to wait for images whose folder is gone, as a network disk may be, before the run stops."""


class ListKeys(Keys):
    """Lists of images."""

    path_column: str | None = Field(default=None, min_length=1)
    """List: column of the images' paths. Default: path, or what is usual for it, such as filename."""
    label_column: str | None = Field(default=None, min_length=1)
    """List: column of the labels. Default: label, or what is usual for it, such as class."""
    split_column: str | None = Field(default=None, min_length=1)
    """List: column that says which split an image is in. Default: split, or what is usual for it, such as subset."""
    separator: Separator | None = None
    """List: what is between the fields of a line: one character, or comma, semicolon, tab, pipe, space. Default: what
    its first line shows."""


AS_USUAL = ListKeys.model_construct()  # the defaults, without building what validates


class OptimizerKeys(Keys):
    """Optimiser."""

    optimizer: Literal["adamw", "sgd", "lamb"] = "adamw"
    """Optimiser, timm's. sgd is without Nesterov's look-ahead; lamb first scales gradients to norm 1 itself."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate at the global batch."""
    weight_decay: NonNegative = 0.05
    """Weight decay."""
    no_decay: tuple[Undecayed, ...] = ("norm", "bias", "position", "class_token")
    """Kinds of parameters that do not decay; leave it empty and all do."""
    momentum: Fraction = 0.9
    """Momentum of SGD."""


class OptimisationKeys(OptimizerKeys):
    """Optimisation."""

    epochs: Positive = 100
    """Passes over the training images."""
    batch: Positive = 256
    """Global batch: images per optimiser step."""
    micro_batch: Positive | None = None
    """Images at once; gradients of the rest of the batch are accumulated. Default: as many as fit into memory."""
    schedule: Literal["cosine", "step"] = "cosine"
    """Learning rate after warm-up: cosine to min_lr, or a tenth at each milestone."""
    milestones: tuple[Positive, ...] = (30, 60, 90)
    """Epochs at which the step schedule drops."""
    min_lr: NonNegative = 0.0
    """Learning rate at the end of the cosine."""
    warmup_epochs: int = Field(default=5, ge=0)
    """Epochs of linear warm-up. Left open, it is at most a tenth of the epochs."""
    warmup_lr: NonNegative = 1e-6
    """Learning rate at the start of warm-up."""
    projector_lr_scale: float = Field(default=1.0, gt=0)
    """Learning rate of the projectors, as a multiple of the student's. Below 1 where a rate that suits the student
    makes them collapse."""
    clip: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient; longer ones are scaled down to it."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of the student's exponential moving average, which is then evaluated and saved."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What a loss that is NaN or infinite does. stop: ends the run. skip: the step's gradients are dropped and the run
    goes on, unless that happens 10 times in a row."""


class RunKeys(Keys):
    """Run."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of everything random."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Autocast type; auto takes bf16 where the hardware multiplies matrices in it."""
    devices: Positive = 1
    """Processes on this machine, one per GPU, that share a batch. Under torchrun its own number counts."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """What several processes hold: all of teacher and student each, or a part of every block (fsdp); see
    docs/cluster.md. One process holds all."""
    batchnorm_over: Literal["process", "all"] | Positive = "process"
    """Images that batch norm takes its statistics over: those at once in a process, in all processes, or a number of
    them, which makes the result independent of devices and memory, but for mixup, cutmix, dist and dropout."""
    compile: bool = False
    """Whether the step runs through torch.compile, which takes minutes at the start. It did not pay on the
    CPU and is unmeasured on GPUs."""
    channels_last: bool = True
    """Whether the student's convolutions use the channels-last layout."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device: auto takes the first GPU that is there."""
    validate_every: Positive = 1
    """Epochs between validations (and checkpoints)."""
    checkpoint_minutes: float | None = Field(default=None, gt=0)
    """Minutes after which a checkpoint is written between validations too. Default: never."""
    keep: Positive = 2
    """Checkpoints to keep: the newest ones."""
    log_every: Positive = 10
    """Steps between log lines; the last step has one too."""


class Recipe(RunKeys, OptimisationKeys, ListKeys, DataKeys, StudentKeys, TeacherKeys, MethodKeys):
    """All keys of a run."""

    @property
    def augmented_views(self) -> int:
        """Different augmentations of an image in the whole run."""
        return min(self.epochs, self.augmentation_epochs or self.epochs)

    @model_validator(mode="before")
    @classmethod
    def _short_runs_warm_up_less(cls, keys: dict[str, Any]) -> dict[str, Any]:
        epochs = str(keys.get("epochs", ""))
        if "warmup_epochs" in keys or not epochs.isdecimal():
            return keys
        return keys | {"warmup_epochs": min(cls.model_fields["warmup_epochs"].default, int(epochs) // 10)}

    @model_validator(mode="after")
    def _parts_go_together(self) -> Recipe:
        if self.method == "none" and self.labels == "none":
            raise ValueError("labels: method none learns from labels only; choose another method or give labels")
        if METHODS[self.method].logits_only and self.logit_weight == 0:
            raise ValueError(f"logit_weight: method {self.method} learns from logits; give a weight above 0")
        if self.cache is not None and self.method != "none" and (self.mixup or self.cutmix):
            raise ValueError("cache: mixup and cutmix mix the images of a batch, which no cache holds; set both to 0")
        if self.method == "scalekd":
            resolve_parts(tpp=self.tpp, stages=self.stages, query=self.query)
        return self

    @model_validator(mode="after")
    def _parts_of_the_batch(self) -> Recipe:
        for key in ("micro_batch", "batchnorm_over"):
            part = getattr(self, key)
            if isinstance(part, int) and self.batch % part:
                raise ValueError(f"{key}: {part} does not divide the batch of {self.batch}")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        for key, args in (("teacher_args", self.teacher_args), ("student_args", self.student_args)):
            fixed = sorted(args.keys() & FIXED_ARGS)
            if fixed:
                raise ValueError(f"{key}: {fixed[0]} cannot be given here; it follows the data or is a key of its own")
            empty = [name for name, value in args.items() if value is None]
            if empty:  # timm would pass over them
                raise ValueError(
                    f"{key}: {empty[0]!r} has no value; write '{{name: value}}', with a space after the colon"
                )
        if not self.views:
            raise ValueError("views: give spatial, frequency or both")
        for key in ("views", "stages", "no_decay"):
            values = getattr(self, key) or ()
            if len(set(values)) != len(values):
                raise ValueError(f"{key}: give each value once")
        if (self.mixup or self.cutmix) and (self.micro_batch or self.batch) % 2:
            raise ValueError("mixup: mixes pairs; give an even batch (and micro_batch)")
        if self.unlabelled_split in (self.train_split, self.val_split):
            raise ValueError(f"unlabelled_split: {self.unlabelled_split!r} is another split's folder already")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio: {list(self.crop_ratio)} is not a range above 0")
        if self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(f"crop_scale: {list(self.crop_scale)} is not a range; give the smaller value first")
        if self.epochs % self.validate_every:
            raise ValueError(f"validate_every: {self.validate_every} does not divide the {self.epochs} epochs")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs: {self.warmup_epochs} must be less than the {self.epochs} epochs; "
                f"set it to {self.epochs // 10}, say"
            )
        return self


GROUPS: tuple[type[Keys], ...] = (
    MethodKeys, TeacherKeys, StudentKeys, DataKeys, ListKeys, OptimisationKeys, RunKeys
)  # fmt: skip


def validate(schema: type[K], keys: dict[str, Any], source: str = "recipe") -> K:
    """Turn plain keys into a recipe.

    Args:
        schema: The kind of recipe.
        keys: Keys and values, as YAML gives them.
        source: Where they are from, for the message.

    Raises:
        UserError: For the first unknown key or invalid value; names it, and suggests the nearest known key.
    """
    for key in keys:
        if key not in schema.model_fields:
            raise UserError(f"{source}: unknown key {key!r}{suggest(str(key), schema.model_fields)}")
    try:
        return schema.model_validate(keys)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise UserError(f"{source}: {message}") from None
        key = str(first["loc"][0])
        if first["type"] == "missing":
            message = f"value {int(first['loc'][1]) + 1} is missing"
        raise UserError(f"{source}: {key}: {message[0].lower()}{message[1:]} (got {keys.get(key)!r})") from None
