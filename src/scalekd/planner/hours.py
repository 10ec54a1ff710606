"""GPU-hours of a run, by arithmetic that a reader can redo."""

from __future__ import annotations

from dataclasses import dataclass

from scalekd.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Device:
    """A device as its vendor's data sheet gives it.

    Attributes:
        name: Name for people.
        peak_flops: Dense bf16 FLOP/s, without sparsity; fp16 where the device has no bf16.
        memory_bytes: Memory.
        number_format: The format of the peak.
        kind: `cuda` or `cpu`, whose steps take different memory.
    """

    name: str
    peak_flops: float
    memory_bytes: int
    number_format: str = "bf16"
    kind: str = "cuda"

    @property
    def article(self) -> str:
        """The name as it stands in a sentence: `an NVIDIA L4`, but `this machine's CPU`."""
        return self.name if self.name.startswith("this ") else f"an {self.name}"


GIB = 2**30
DEVICES = {
    "a100": Device("NVIDIA A100 SXM", 312e12, 80 * GIB),
    "h100": Device("NVIDIA H100 SXM", 989e12, 80 * GIB),
    "h200": Device("NVIDIA H200 SXM", 989e12, 141 * GIB),
    "l4": Device("NVIDIA L4", 121e12, 24 * GIB),
    "l40s": Device("NVIDIA L40S", 362e12, 48 * GIB),
    "rtx4090": Device("NVIDIA GeForce RTX 4090", 165e12, 24 * GIB),
    "t4": Device("NVIDIA T4", 65e12, 16 * GIB, "fp16"),
    "v100": Device("NVIDIA V100 SXM2", 125e12, 32 * GIB, "fp16"),
}


def find_device(name: str) -> Device:
    """The device of this name, in upper or lower case.

    Raises:
        UserError: If it is not in the table; suggests the nearest.
    """
    key = name.lower()
    if key not in DEVICES:
        hint = did_you_mean(key, DEVICES) or f"; known are here (this machine), {', '.join(DEVICES)}"
        raise UserError(f"device: no data sheet of {name!r} is known{hint}")
    return DEVICES[key]


@dataclass(frozen=True)
class Hours:
    """Time of a run and the factors that it comes from.

    Attributes:
        flops_per_image: FLOPs of a training step for one image.
        images: Images an epoch.
        epochs: Epochs.
        peak_flops: FLOP/s of the device at its best.
        utilisation: Part of the peak that the run reaches, above 0 to 1.
    """

    flops_per_image: float
    images: int
    epochs: int
    peak_flops: float
    utilisation: float

    @property
    def images_per_second(self) -> float:
        """Training images a second."""
        return self.peak_flops * self.utilisation / self.flops_per_image

    @property
    def hours(self) -> float:
        """Hours of one such device for the whole run, validation and start left out."""
        return self.images * self.epochs / self.images_per_second / 3600

    def arithmetic(self) -> str:
        """Every factor and both results, a line each."""
        return "\n".join(
            (
                f"FLOPs an image    {self.flops_per_image / 1e9:,.2f} GFLOP",
                f"rate              {self.peak_flops / 1e12:,.4g} TFLOP/s peak x {self.utilisation:.3g} reached "
                f"= {self.peak_flops * self.utilisation / 1e12:,.4g} TFLOP/s",
                f"images a second   rate / FLOPs an image = {self.images_per_second:,.1f}",
                f"images            {self.images:,} an epoch x {self.epochs:,} epochs = {self.images * self.epochs:,}",
                f"hours             images / images a second / 3600 = {self.hours:,.2f}",
            )
        )


def gpu_hours(flops_per_image: float, images: int, epochs: int, peak_flops: float, utilisation: float) -> Hours:
    """Hours of one device at a constant part of its peak; see `Hours` for the factors.

    Raises:
        UserError: If the utilisation is not in (0, 1] or another factor is not positive.
    """
    if not 0 < utilisation <= 1:
        raise UserError(f"utilisation: {utilisation:g} is not above 0 and at most 1; 0.35 stands for 35% of the peak")
    for name, value in (("flops", flops_per_image), ("images", images), ("epochs", epochs), ("peak", peak_flops)):
        if value <= 0:
            raise UserError(f"{name}: {value:g} is not positive")
    return Hours(flops_per_image, images, epochs, peak_flops, utilisation)
