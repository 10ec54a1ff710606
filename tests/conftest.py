"""Shared fixtures: small coloured images, a small teacher that reads them, and the command line in this process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image
from rich.console import Console

from scalekd.cli.main import run
from scalekd.models import Classifier, Student, Teacher
from scalekd.recipes import load
from scalekd.tasks.distill import distill

# The machines that run the tests are shared: no time limits, and the same examples everywhere.
settings.register_profile("scalekd", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("scalekd")

# A shell that runs the suite in the background has Ctrl-C ignored, which runs would respect.
signal.signal(signal.SIGINT, signal.default_int_handler)

CLASSES = ("blue", "green", "red")
# The first backward of a process decides which threads autograd starts; under fake tensors it would start GPUs' too,
# and no process that is forked later could run a backward (see scalekd.child).
torch.ones(1, requires_grad=True).sum().backward()  # type: ignore[no-untyped-call]

TINY_VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 32, "num_heads": 2}
TINY_CNN: dict[str, Any] = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "output_stride": 8}
TINY_STUDENT = ("--student", "resnet18", "--student-args", str(TINY_CNN).replace("'", ""))
# One run of the command line on the images of `data`, with everything small; without a student, and with one.
TINY_SETTINGS = (
    *("--resolution", "32", "--batch", "6", "--epochs", "2", "--warmup-epochs", "0", "--lr", "0.01"),
    *("--crop-fraction", "1", "--workers", "0", "--log-every", "1", "--precision", "float32"),
    *("--micro-batch", "6"),  # without it, a run predicts its memory first, which takes longer than its training
)
TINY_RUN = (*TINY_STUDENT, *TINY_SETTINGS)
HOSTILE = "<script>alert(1)</script>"  # a class that no page should believe
# The same for `distill` in this process.
TINY_KEYS: dict[str, Any] = {
    "student": "resnet18", "student_args": TINY_CNN, "resolution": 32, "crop_fraction": 1, "batch": 6, "epochs": 2,
    "warmup_epochs": 0, "lr": 0.01, "workers": 0, "log_every": 1, "precision": "float32", "check_teacher": False,
    "accelerator": "cpu", "micro_batch": 6,
}  # fmt: skip


def shared(*parts: str) -> Path:
    """A path in the folder of reference values and real images, which lies beside the repository or nowhere."""
    root = Path(os.environ.get("SCALEKD_SHARED", Path(__file__).parents[2] / "shared"))
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"reference material is not here: {path} (set SCALEKD_SHARED to its folder)")
    return path


def write_images(folder: Path, count: int, size: tuple[int, int] = (40, 36), seed: int = 0) -> Path:
    """Write `count` images a class, in the class's colour with noise."""
    generator = np.random.default_rng(seed)
    for channel, name in ((2, "blue"), (1, "green"), (0, "red")):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 100, (*size, 3), dtype=np.uint8)
            pixels[..., channel] += 120
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(autouse=True)
def _caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indices of image folders are kept where they are deleted."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))


def newest_checkpoint(run: Path) -> Path:
    """The last checkpoint of a run."""
    return sorted((run / "checkpoints").glob("step-*.ckpt"))[-1]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """12 training and 6 validation images of three classes."""
    write_images(tmp_path / "data" / "train", 4, seed=0)
    write_images(tmp_path / "data" / "val", 2, seed=1)
    return tmp_path / "data"


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny ViT with random weights and a head for the three classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    model = Classifier("vit_tiny_patch16_224", pretrained=False, num_classes=3, resolution=32, **TINY_VIT)
    model.save(path, CLASSES)
    return path


@pytest.fixture
def teacher(teacher_file: Path) -> Teacher:
    """The tiny ViT as a teacher: 4x4 tokens of width 32, three classes."""
    return Teacher(teacher_file)


@pytest.fixture
def student() -> Student:
    """A tiny CNN: two maps of 4x4, three classes."""
    torch.manual_seed(0)
    return Student("resnet18", num_classes=3, resolution=32, **TINY_CNN)


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code, standard output and standard error."""

    code: int
    out: str
    err: str

    def refused(self, *parts: str) -> None:
        """Assert one clear line, exit code 2, and that the line names each of `parts`."""
        assert self.code == 2, self.err
        assert "Traceback" not in self.err
        line = self.err.strip().splitlines()[-1]
        assert line.startswith("error: "), self.err
        assert self.err.count("error:") == 1
        for part in parts:
            assert part in line, f"{part!r} is not in: {line}"


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run `scalekd ARGS...` in this process."""

    def call(*args: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["scalekd", *map(str, args)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            run()
        out, err = capfd.readouterr()
        return Outcome(int(stop.value.code or 0), out, err)

    return call


@pytest.fixture(scope="session")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 training and 6 validation images, listed with their classes, one of them hostile."""
    folder = tmp_path_factory.mktemp("listed")
    for split, count in (("train", 4), ("val", 2)):
        images = sorted(write_images(folder / "images" / split, count).glob("*/*.png"))
        rows = [f"{path.relative_to(folder)},{path.parent.name.replace('green', HOSTILE)}" for path in images]
        (folder / f"{split}.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    return folder


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, listed: Path, teacher_file: Path) -> Path:
    """A folder with the finished runs `none` and `scalekd`, which learns from features only."""
    folder = tmp_path_factory.mktemp("runs")
    own = {"none": {}, "scalekd": {"teacher": str(teacher_file), "logit_weight": 0}}
    for method, more in own.items():
        recipe = load(None, TINY_KEYS | {"data": str(listed), "method": method} | more)
        distill(recipe, folder / method, console=Console(quiet=True))
    return folder
