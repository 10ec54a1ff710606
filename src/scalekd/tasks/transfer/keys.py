"""Recipe keys that all tasks of `transfer` share."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from scalekd.keys import FIXED_ARGS, File, Keys, NonNegative, Positive
from scalekd.recipes import OptimizerKeys


class BackboneKeys(Keys):
    """Model."""

    backbone: str | None = Field(default=None, min_length=1)
    """timm name, a weights file written by scalekd, or the folder of a run."""
    backbone_weights: File | None = None
    """safetensors file for the timm name."""
    backbone_pretrained: bool = True
    """Whether a timm name without backbone_weights starts from the hub's weights; otherwise they are random."""
    backbone_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of timm.create_model, as YAML: '{drop_path_rate: 0.2}'."""


class LoadingKeys(Keys):
    """Data and augmentation."""

    workers: int = Field(default=2, ge=0, le=1024)
    """Processes that load images. The result does not depend on it."""
    max_corrupt: int = Field(default=10, ge=0, lt=2**31)
    """Unreadable images to skip before the run stops."""
    max_pixels: Positive = 178_956_970
    """Pixels an image may have; larger ones count as unreadable."""
    data_patience: NonNegative = 60.0
    """Seconds to wait for images whose folder is gone, as a network disk may be, before the run stops."""


class StepKeys(OptimizerKeys):
    """Optimisation."""

    batch: Positive = 16
    """Global batch: images per optimiser step."""
    micro_batch: Positive | None = None
    """Images at once; gradients of the rest of the batch are accumulated. Default: the whole batch."""
    clip: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient; longer ones are scaled down to it."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of the model's exponential moving average, which is then measured and saved."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What a loss that is NaN or infinite does. stop: ends the run. skip: the step's gradients are dropped and the run
    continues, unless that happens 10 times in a row."""


class RunKeys(Keys):
    """Run."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of everything random."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Autocast type; auto takes bf16 where the hardware multiplies matrices in it."""
    devices: Positive = 1
    """Processes on this machine, one per GPU, that share a batch. Under torchrun its own number counts."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device: auto takes the first GPU that is there."""
    checkpoint_minutes: float | None = Field(default=30.0, gt=0)
    """Minutes after which a checkpoint is written between validations too; none: never."""
    keep: Positive = 2
    """Checkpoints to keep: the newest ones."""
    log_every: Positive = 50
    """Steps between log lines; the last step has one too."""
    pictures: int = Field(default=8, ge=0)
    """Validation images that are drawn at the end, annotations next to predictions."""


class Transfer(RunKeys, StepKeys, LoadingKeys, BackboneKeys):
    """The keys that all tasks of `transfer` share."""

    def accumulate(self, processes: int) -> int:
        """Return the number of micro-batches per optimiser step in each process."""
        share = self.batch // processes
        return share // min(self.micro_batch or share, share)

    @model_validator(mode="after")
    def _common_keys_fit(self) -> Transfer:
        fixed = sorted(self.backbone_args.keys() & FIXED_ARGS)
        if fixed:
            raise ValueError(
                f"backbone_args: {fixed[0]} cannot be given here; set the recipe key for it, or leave it out"
            )
        if self.batch % (self.micro_batch or self.batch):
            raise ValueError(f"micro_batch: {self.micro_batch} does not divide the batch of {self.batch}")
        return self
