"""What README and docs show works: each block of commands or Python is run in a short form, or says what it needs.

A block that cannot be run here is marked in the document, in a comment that readers of the page do not see:
`<!-- needs: ImageNet, GPUs -->`. All others are run, one document in one folder, as its reader would.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mm_models
import pytest
import timm
import torch
from conftest import TINY_KEYS, Cli, write_images
from downstream_data import write_coco, write_scenes
from rich.console import Console
from sourcing import write_shards

from scalekd.recipes import load
from scalekd.tasks.distill import distill

ROOT = Path(__file__).parents[2]
DOCUMENTS = tuple(
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "<!-- Written by `make reference`" not in page.read_text()  # from the commands' own help
)
_BLOCK = re.compile(r"(?:<!-- needs: (?P<needs>[^\n]+) -->\n+)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)

# What stands here (right) for what documents name (left): small models, and what `reader` finds in its folder.
SHORT = {
    "DATA": "data", "IMAGENET": "data", "FOLDER": "data", "D": "data", "PHOTOS": "data/val",
    "COCO": "coco", "OTHER": "coco", "ADEChallengeData2016": "scenes",
    "/data/{split}-{000000..000146}.tar": "shards/{split}-{00..01}.tar",
    "/data/imagenet-{split}.tar": "shards/{split}.tar",
    "train-{000000..000146}": "train-{00..01}", "val-{000000..000006}": "val-{00..01}",
    "R": "imagenette",
    "TEACHER": "teacher.safetensors", "WEIGHTS": "teacher.safetensors", "...": "teacher.safetensors",
    "swin_large_patch4_window7_224": "teacher.safetensors",
    "swin_large_patch4_window7_224.ms_in22k_ft_in1k": "teacher.safetensors",
    "vit_small_patch14_dinov2": "teacher.safetensors",
    "STUDENT": "test_resnet", "mobilenetv1_100": "test_resnet", "resnet34": "test_resnet",
    "resnet18": "test_convnext", "vit_tiny_patch16_224": "test_vit",
    "10": "3",  # classes
}  # fmt: skip
_IMAGES = "--resolution 32 --crop-fraction 1 --batch 6 --workers 0"
_TRAINING = f"{_IMAGES} --micro-batch 6 --epochs 1 --warmup-epochs 0 --precision float32 --no-check-teacher"
_TRANSFER = "--backbone-args {} --batch 2 --warmup-steps 0 --workers 0 --precision float32 --pictures 1"
_DETECTION = "--epochs 1 --milestones 1 --sizes 64 --max-size 96 --width 16 --hidden 32 --proposals 32"
_SEGMENTATION = "--steps 2 --validate-every 2 --short-side 40 --crop 32 --decoder-channels 16 --classes red,green,blue"
# Flags that are added to make a command short; the last one of a name counts.
FLAGS = {
    "adapt": _IMAGES,
    "distill": _TRAINING,
    "cache": _TRAINING,
    "inspect": "--resolution 32",
    "import": "--model-args '{layers: [2, 1, 1, 1], channels: [8, 16, 32, 64], stem_width: 4}'",
    "transfer detection": f"{_TRANSFER} {_DETECTION}",
    "transfer segmentation": f"{_TRANSFER} {_SEGMENTATION}",
}
# And where a recipe names the models.
_TEACHER = "--teacher teacher.safetensors --teacher-args {} --teacher-resolution 32"
MODELS = {"distill": _TEACHER, "cache": _TEACHER, "inspect": "teacher.safetensors test_resnet"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and what it needs that is not here."""

    language: str
    text: str
    needs: str | None

    @property
    def commands(self) -> Iterator[str]:
        """Its lines, continuation lines joined, comments left out."""
        if self.language in ("", "bash"):
            lines = self.text.replace("\\\n", " ").splitlines()
            yield from (line.strip() for line in lines if line.strip() and not line.startswith("#"))


def blocks_of(document: Path) -> list[Block]:
    """The fenced blocks of a document, in their order."""
    found = _BLOCK.finditer(document.read_text())
    return [Block(block["language"], block["text"], block["needs"]) for block in found]


def shortened(words: list[str]) -> list[str]:
    """The words of a `scalekd` command -> its arguments in the short form."""
    name = " ".join(words[1 : 3 if words[1] in ("transfer", "data") else 2])
    words = [SHORT.get(word, word) for word in words[1:]]
    if {"--resume", "--evaluate"} & set(words):
        return words
    more = shlex.split(FLAGS.get(name, ""))
    if "--recipe" in words and name in MODELS:
        more += shlex.split(MODELS[name])
        more += ["--student", "test_resnet"] if name == "distill" and "--student" not in words else []
    return words + more


class Reader:
    """Does what a document says, in the current folder, which holds what it takes as given.

    Args:
        cli: Runs a command.
        given: A finished run; stands for those that the document has not made itself.
    """

    def __init__(self, cli: Cli, given: Path) -> None:
        self.cli, self.given = cli, given
        self.borrowed: set[str] = set()
        self.names = {"timm": timm, "images": torch.rand(2, 3, 224, 224), "labels": torch.tensor([0, 1])}
        self.names["image"] = torch.rand(3, 64, 64)

    def read(self, block: Block) -> None:
        if block.language == "python":
            text = re.sub(r'(?<=")[\w.]+(?=")', lambda word: SHORT.get(word[0], word[0]), block.text)
            exec(text.replace("num_classes=10,", "num_classes=3,"), self.names)
        for command in block.commands:
            words = shlex.split(command, comments=True)
            assert words[0] == "scalekd", f"`{command}` is not run by this test: mark its block `<!-- needs: ... -->`"
            self.prepare(words)
            outcome = self.cli(*shortened(words))
            assert outcome.code == 0, f"{command}\n{shlex.join(shortened(words))}\n{outcome.err}"

    def prepare(self, words: list[str]) -> None:
        """Put the runs where they are that the command takes as given."""
        output = words[words.index("--output") + 1] if "--output" in words else None
        for run in (word for word in words if re.fullmatch(r"runs/[\w-]+", word)):
            if run == output and not {"--resume", "--evaluate"} & set(words):
                if run in self.borrowed:
                    shutil.rmtree(run)
            elif not Path(run).exists():
                shutil.copytree(self.given, run)
                self.borrowed.add(run)
        if output and "--resume" in words:  # stopped before its end
            Path(output, "result.json").unlink()


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, listed: Path, teacher_file: Path) -> Path:
    """A finished run, whose teacher has other classes."""
    folder = tmp_path_factory.mktemp("given") / "run"
    own: dict[str, Any] = {
        "data": str(listed),
        "teacher": str(teacher_file),
        "student": "test_resnet",
        "student_args": {},
    }
    own |= {"epochs": 1, "logit_weight": 0}
    distill(load(None, TINY_KEYS | own), folder, console=Console(quiet=True))
    return folder


@pytest.fixture
def reader(cli: Cli, given: Path, teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """Somebody in a folder with what documents name as the reader's own."""
    data = tmp_path / "data"
    write_images(data / "train", 4, seed=0)
    write_images(data / "val", 2, seed=1)
    write_shards(data, tmp_path / "shards")
    write_coco(tmp_path / "coco")
    write_scenes(tmp_path / "scenes")
    shutil.copy(teacher_file, tmp_path / "teacher.safetensors")
    shutil.copy(given / "student.safetensors", tmp_path)
    resnet = mm_models.Classified(mm_models.ResNetV1d((2, 1, 1, 1), 8, 8), 256)
    torch.save({"state_dict": resnet.state_dict()}, tmp_path / "epoch_300.pth")
    (tmp_path / "my_models.py").write_text(_OWN_MODEL)
    recipes = [block.text for document in DOCUMENTS for block in blocks_of(document) if block.language == "yaml"]
    (tmp_path / "my.yaml").write_text(recipes[0])
    monkeypatch.chdir(tmp_path)
    return Reader(cli, given)


_OWN_MODEL = """
from torch import nn

def build(num_classes):
    model = nn.Sequential()
    model.stage3 = nn.Conv2d(3, 8, 3, stride=8)
    model.stage4 = nn.Conv2d(8, 8, 3, padding=1)
    model.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
    return model
"""


@pytest.mark.parametrize(
    "document",
    [document for document in DOCUMENTS if any(block.needs is None for block in blocks_of(document))],
    ids=lambda document: document.name,
)
def test_what_a_document_shows_works(reader: Reader, document: Path) -> None:
    for block in blocks_of(document):
        if block.needs is None:
            reader.read(block)


def test_every_command_shown_has_the_flags_it_is_shown_with(cli: Cli) -> None:
    """Those that are not run, too."""
    shown = [command for document in DOCUMENTS for block in blocks_of(document) for command in block.commands]
    commands = [command.partition("scalekd ")[2] for command in shown if "scalekd " in command]
    assert len(commands) > 60
    for command in commands:
        words = shlex.split(command, comments=True)
        name = words[: 2 if words[0] in ("transfer", "data") else 1]
        known = set(re.findall(r"--[a-z][\w-]*", cli(*name, "--help", "all").out))
        unknown = {word for word in words if re.match("--[a-z]", word)} - known
        assert not unknown, f"{unknown} of: scalekd {command}"
