"""Computes the GPU-hours of a run from FLOPs, images and an assumed utilisation."""

from __future__ import annotations

from dataclasses import dataclass

from scalekd.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Device:
    """A device with the numbers of its vendor's data sheet.

    Attributes:
        name: Human-readable name.
        peak_flops: Peak FLOP/s for dense bf16 products (without sparsity); for fp16 if the device has no bf16.
        memory_bytes: Memory in bytes.
        number_format: Number format that the peak is for.
        kind: `cuda` or `cpu`; a step takes different memory on each.
    """

    name: str
    peak_flops: float
    memory_bytes: int
    number_format: str = "bf16"
    kind: str = "cuda"

    @property
    def article(self) -> str:
        """The name with its article: `an NVIDIA L4`, but `this machine's CPU`."""
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
    """Look up a device by name; case does not matter.

    Raises:
        UserError: If it is not in `DEVICES`; suggests the most similar name.
    """
    key = name.lower()
    if key not in DEVICES:
        hint = did_you_mean(key, DEVICES) or f"; known are here (this machine), {', '.join(DEVICES)}"
        raise UserError(f"device: no data sheet of {name!r} is known{hint}")
    return DEVICES[key]


@dataclass(frozen=True)
class Hours:
    """Duration of a run and the factors that it is computed from.

    Attributes:
        flops_per_image: FLOPs of a training step for one image.
        images: Images per epoch.
        epochs: Number of epochs.
        peak_flops: Peak FLOP/s of the device.
        utilisation: Fraction of the peak that the run reaches, in (0, 1].
    """

    flops_per_image: float
    images: int
    epochs: int
    peak_flops: float
    utilisation: float

    @property
    def images_per_second(self) -> float:
        """Training images per second."""
        return self.peak_flops * self.utilisation / self.flops_per_image

    @property
    def hours(self) -> float:
        """Hours for the whole run on one such device, without validation and start-up."""
        return self.images * self.epochs / self.images_per_second / 3600

    def arithmetic(self) -> str:
        """Return every factor and both results, one line each."""
        return "\n".join(
            (
                f"FLOPs per image   {self.flops_per_image / 1e9:,.2f} GFLOP",
                f"rate              {self.peak_flops / 1e12:,.4g} TFLOP/s peak x {self.utilisation:.3g} reached "
                f"= {self.peak_flops * self.utilisation / 1e12:,.4g} TFLOP/s",
                f"images per second rate / FLOPs per image = {self.images_per_second:,.1f}",
                f"images            {self.images:,} per epoch x {self.epochs:,} epochs = {self.images * self.epochs:,}",
                f"hours             images / images per second / 3600 = {self.hours:,.2f}",
            )
        )


def gpu_hours(flops_per_image: float, images: int, epochs: int, peak_flops: float, utilisation: float) -> Hours:
    """Compute the hours of one device at a constant fraction of its peak; see `Hours` for the factors.

    Raises:
        UserError: If the utilisation is not in (0, 1] or another factor is not positive.
    """
    if not 0 < utilisation <= 1:
        raise UserError(f"utilisation: {utilisation:g} is not above 0 and at most 1; pass 0.35 for 35% of the peak")
    for name, value in (("flops", flops_per_image), ("images", images), ("epochs", epochs), ("peak", peak_flops)):
        if value <= 0:
            raise UserError(f"{name}: {value:g} is not positive")
    return Hours(flops_per_image, images, epochs, peak_flops, utilisation)
