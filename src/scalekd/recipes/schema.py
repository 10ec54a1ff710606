"""The typed recipe: every key of a run with its type, default and meaning. Each key is also a command-line flag."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from scalekd.errors import UserError
from scalekd.keys import (
    FIXED_ARGS,
    TRANSFORMERS,
    File,
    Fraction,
    Keys,
    Map,
    NonNegative,
    Positive,
    Undecayed,
)
from scalekd.methods.parts import CAP_SETTINGS, refuse_cap_settings, resolve_parts
from scalekd.methods.registry import LEAN, METHODS, MethodKeys
from scalekd.methods.share import FeatureShare
from scalekd.recipes.data_keys import DataKeys, SourceKeys
from scalekd.recipes.other_names import suggest

K = TypeVar("K", bound="Keys")


class TeacherKeys(Keys):
    """Teacher."""

    teacher: str | None = Field(default=None, min_length=1)
    """timm name (hub weights are loaded unless teacher_weights is set), a weights file written by scalekd,
    transformers:NAME (a name on the hub or a folder), or python:module.callable (your own code)."""
    teacher_weights: File | None = None
    """safetensors file with weights for the timm name."""
    teacher_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of timm.create_model, as YAML: '{global_pool: avg}'."""
    teacher_resolution: Positive | None = None
    """Side in pixels of the teacher's input (images are resized). Default: that of its weights or architecture."""
    tail_blocks: Positive | None = None
    """Number of blocks in the tail of a teacher with equal blocks (ViT, BEiT, EVA, ...). Default: 2. That of
    a Swin or ConvNeXt is fixed."""
    teacher_tokens: str | None = None
    """Module whose output is the final tokens, [B, N, D] or a map, for a teacher whose tokens are not known."""
    teacher_tail: tuple[str, ...] = ()
    """Modules of such a teacher that TPP runs on tokens, in their order: its last blocks and norm. Without them, tpp is
    false."""
    check_teacher: bool = True
    """Whether to measure the teacher on the validation images at the start, and the features of a student that starts
    from weights. If the teacher's logits are used, an accuracy near chance is an error."""
    cache: File | None = None
    """Folder of caches filled by `scalekd cache`: teacher outputs are read from there, and the teacher does not run."""
    cache_format: Literal["bf16", "int8"] = "bf16"
    """How a cache stores tokens: as bf16, or in half the space as int8 with a scale per token."""


class StudentKeys(Keys):
    """Student."""

    student: str | None = Field(default=None, min_length=1)
    """timm name, torchvision:NAME, python:module.callable (your own code), or a weights file written by scalekd."""
    student_maps: tuple[Map, Map] | None = None
    """Maps S_prev and S_last: indices (timm) or module names. Default: the paper's choice for timm models."""
    student_weights: File | None = None
    """safetensors file with the weights to start from."""
    student_pretrained: bool = False
    """Whether to start from the weights on the hub."""
    student_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of timm.create_model (or whatever builds the student), as YAML: '{drop_path_rate: 0.05}'."""


class OptimizerKeys(Keys):
    """Optimiser."""

    optimizer: Literal["adamw", "sgd", "lamb"] = "adamw"
    """Optimiser, from timm. sgd does not use Nesterov momentum; lamb scales the gradients to norm 1 itself."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate at the global batch."""
    weight_decay: NonNegative = 0.05
    """Weight decay."""
    no_decay: tuple[Undecayed, ...] = ("norm", "bias", "position", "class_token")
    """Kinds of parameters without weight decay; if empty, all parameters decay."""
    momentum: Fraction = 0.9
    """Momentum of SGD."""


class OptimisationKeys(OptimizerKeys):
    """Optimisation."""

    epochs: Positive = 100
    """Number of passes over the training images."""
    batch: Positive = 256
    """Global batch: images per optimiser step."""
    micro_batch: Positive | None = None
    """Number of images at once; gradients are accumulated over the batch. Default: as many as fit in memory."""
    schedule: Literal["cosine", "step"] = "cosine"
    """Learning rate after warm-up: cosine down to min_lr, or divided by ten at each milestone."""
    milestones: tuple[Positive, ...] = (30, 60, 90)
    """Epochs at which the step schedule drops."""
    min_lr: NonNegative = 0.0
    """Learning rate at the end of the cosine."""
    warmup_epochs: int = Field(default=5, ge=0)
    """Epochs of linear warm-up. If not set, it is at most a tenth of the epochs."""
    warmup_lr: NonNegative = 1e-6
    """Learning rate at the start of warm-up."""
    projector_lr_scale: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
    """Learning rate of the projectors, as a multiple of the student's. auto: for scalekd with adamw such that it is at
    most 1e-3, because its projectors collapsed at higher rates; otherwise 1."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Learning rate of each layer of the student, as a multiple of that of the layer after it; the last one has lr. For
    a student that starts from weights, 0.75 for example keeps what its first layers know."""
    clip: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient; larger gradients are scaled down to it."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of an exponential moving average of the student; if set, the average is evaluated and saved."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What to do if the loss is NaN or infinite. stop: end the run. skip: drop the gradients of the step and continue,
    unless this happens 10 times in a row."""


class RunKeys(Keys):
    """Run."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of all random numbers."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Autocast type; auto uses bf16 if the hardware multiplies matrices in it."""
    devices: Positive = 1
    """Number of processes on this machine, one per GPU, that share a batch. Under torchrun, its number counts."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """What each of several processes holds: the whole teacher and student (ddp), or a part of every block (fsdp); see
    docs/cluster.md. A single process holds everything."""
    batchnorm_over: Literal["process", "all"] | Positive = "process"
    """Images over which batch norm takes its statistics: those at once in a process, in all processes, or a number of
    images, which makes the result independent of devices and memory, except for mixup, cutmix, dist and dropout."""
    compile: bool = False
    """Whether the step runs through torch.compile, which takes minutes at the start. It was not faster on the
    CPU and is not measured on GPUs."""
    channels_last: bool = True
    """Whether the student's convolutions use the channels-last layout."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device: auto uses the first GPU, if any."""
    validate_every: Positive = 1
    """Epochs between validations (and checkpoints). There is one after the last epoch, too: with 5 epochs and 2, after
    epochs 2, 4 and 5."""
    checkpoint_minutes: float | None = Field(default=None, gt=0)
    """Minutes after which a checkpoint is also written between validations. Default: never."""
    keep: Positive = 2
    """Number of checkpoints to keep; the newest are kept."""
    keep_best: bool = False
    """Whether to keep the student of the validation with the highest top-1 (map with multi_label) too, as
    student.best.safetensors. Its accuracy is flattered, because it was chosen on the images that measured it."""
    patience: Positive | None = None
    """Validations in a row without a higher top-1 (map with multi_label) after which the run ends early. Default:
    never. The learning rate has not come down then, so that the last weights are not the best: add keep_best. Several
    students end together, when none has improved for so long."""
    logger: Literal["none", "wandb", "mlflow"] = "none"
    """Service to which the figures are sent too: Weights & Biases, or MLflow at MLFLOW_TRACKING_URI. metrics.jsonl and
    TensorBoard events are always written."""
    log_every: Positive = 10
    """Steps between log lines; the last step is always logged."""


class Recipe(RunKeys, OptimisationKeys, SourceKeys, DataKeys, StudentKeys, TeacherKeys, MethodKeys):
    """All keys of a run."""

    @property
    def starts_from_weights(self) -> bool:
        """Whether the student starts from trained weights."""
        named = self.student or ""
        is_file = named.endswith(".safetensors") or os.path.isdir(named)
        return self.student_pretrained or self.student_weights is not None or is_file

    @property
    def augmented_views(self) -> int:
        """Number of different augmentations of an image in the whole run."""
        return min(self.epochs, self.augmentation_epochs or self.epochs)

    @property
    def used_projector_lr_scale(self) -> float:
        """`projector_lr_scale`, with `auto` as a number."""
        if self.projector_lr_scale != "auto":
            return self.projector_lr_scale
        most = METHODS[self.method].projector_lr
        return min(1.0, most / self.lr) if most is not None and self.optimizer == "adamw" else 1.0

    @property
    def stored_share(self) -> FeatureShare:
        """The images whose tokens a cache for this run holds: none if the method uses nothing but logits."""
        return FeatureShare(0.0 if METHODS[self.method].logits_only else self.feature_share)

    def share_fault(self, at_once: int) -> str:
        """Return why `feature_share` does not fit the number of images at once; empty if it does."""
        if FeatureShare(self.feature_share).count(at_once):
            return ""
        return (
            f"feature_share: {self.feature_share:g} of {at_once} images at once is less than one image; "
            f"set it to {1 / at_once:.4g} or more"
        )

    @model_validator(mode="before")
    @classmethod
    def _short_runs_warm_up_less(cls, keys: dict[str, Any]) -> dict[str, Any]:
        epochs = str(keys.get("epochs", ""))
        if "warmup_epochs" in keys or not epochs.isdecimal():
            return keys
        return keys | {"warmup_epochs": min(cls.model_fields["warmup_epochs"].default, int(epochs) // 10)}

    @model_validator(mode="before")
    @classmethod
    def _lean_sets_keys(cls, keys: dict[str, Any]) -> dict[str, Any]:
        return LEAN | keys if keys.get("lean") is True else keys

    @model_validator(mode="before")
    @classmethod
    def _several_labels_are_independent(cls, keys: dict[str, Any]) -> dict[str, Any]:
        return {"task_loss": "bce"} | keys if str(keys.get("multi_label")).lower() in ("true", "1") else keys

    @model_validator(mode="before")
    @classmethod
    def _without_a_tail_there_is_no_tpp(cls, keys: dict[str, Any]) -> dict[str, Any]:
        named = keys.get("teacher_tokens") is not None or str(keys.get("teacher", "")).startswith(TRANSFORMERS)
        return {"tpp": False} | keys if named and not keys.get("teacher_tail") else keys

    @model_validator(mode="after")
    def _parts_go_together(self) -> Recipe:
        if self.class_weights == "balanced" and self.multi_label:
            raise ValueError("class_weights: is for one label per image; leave class_weights out")
        if self.class_weights == "balanced" and (self.task_loss != "cross_entropy" or self.labels == "none"):
            raise ValueError("class_weights: needs labels and task_loss cross_entropy; leave class_weights out")
        if self.method == "none" and self.labels == "none":
            raise ValueError("labels: method none learns from labels only; choose another method or use labels")
        if METHODS[self.method].logits_only and self.logit_weight == 0:
            raise ValueError(f"logit_weight: method {self.method} learns from logits; set a weight above 0")
        if self.cache is not None and self.method != "none" and (self.mixup or self.cutmix):
            raise ValueError("cache: mixup and cutmix mix the images of a batch, which no cache holds; set both to 0")
        if self.method == "scalekd":
            resolve_parts(tpp=self.tpp, stages=self.stages, query=self.query, projector=self.projector)
            fields = type(self).model_fields
            given = [key for key in CAP_SETTINGS if getattr(self, key) != fields[key].default]
            refuse_cap_settings(self.projector, given)
        return self

    @model_validator(mode="after")
    def _labels_fit_the_method(self) -> Recipe:
        if not self.multi_label:
            if self.label_separator is not None:
                raise ValueError("label_separator: separates the labels of an image; add multi_label")
            return self
        if METHODS[self.method].one_label:
            raise ValueError(
                f"multi_label: {self.method} compares probabilities that sum to 1 over the classes; take method kd or "
                "scalekd"
            )
        if self.task_loss != "bce":
            raise ValueError("task_loss: an image with several labels needs bce; leave task_loss out")
        if self.mixup or self.cutmix:
            key = "mixup" if self.mixup else "cutmix"
            raise ValueError(f"{key}: mixes images with one label each; set {key} to 0")
        return self

    @model_validator(mode="after")
    def _parts_of_the_batch(self) -> Recipe:
        for key in ("micro_batch", "batchnorm_over"):
            part = getattr(self, key)
            if isinstance(part, int) and self.batch % part:
                raise ValueError(f"{key}: {part} does not divide the batch of {self.batch}")
        if fault := self.share_fault(self.micro_batch or self.batch):
            raise ValueError(fault)
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        for key, args in (("teacher_args", self.teacher_args), ("student_args", self.student_args)):
            fixed = sorted(args.keys() & FIXED_ARGS)
            if fixed:
                raise ValueError(f"{key}: {fixed[0]} cannot be set here; it follows from the data or has its own key")
            empty = [name for name, value in args.items() if value is None]
            if empty:  # timm would ignore them
                raise ValueError(
                    f"{key}: {empty[0]!r} has no value; write '{{name: value}}', with a space after the colon"
                )
        if not self.views:
            raise ValueError("views: pass spatial, frequency or both")
        for key in ("views", "stages", "no_decay"):
            values = getattr(self, key) or ()
            if len(set(values)) != len(values):
                raise ValueError(f"{key}: pass each value only once")
        if (self.mixup or self.cutmix) and (self.micro_batch or self.batch) % 2:
            raise ValueError("mixup: mixes pairs; set an even batch (and micro_batch)")
        if self.unlabelled_split in (self.train_split, self.val_split):
            raise ValueError(f"unlabelled_split: {self.unlabelled_split!r} is already the folder of another split")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio: {list(self.crop_ratio)} is not a range above 0")
        if self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(f"crop_scale: {list(self.crop_scale)} is not a range; pass the smaller value first")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs: {self.warmup_epochs} must be less than the {self.epochs} epochs; "
                f"set it to {self.epochs // 10}, say"
            )
        return self


GROUPS: tuple[type[Keys], ...] = (
    MethodKeys, TeacherKeys, StudentKeys, DataKeys, SourceKeys, OptimisationKeys, RunKeys
)  # fmt: skip


def validate(schema: type[K], keys: dict[str, Any], source: str = "recipe") -> K:
    """Validate plain keys and return them as a recipe.

    Args:
        schema: The class of the recipe.
        keys: Keys and values, as parsed from YAML.
        source: Where they come from, for error messages.

    Raises:
        UserError: For the first unknown key or invalid value; the message names it and suggests the nearest known key.
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
