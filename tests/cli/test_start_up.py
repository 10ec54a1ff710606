"""Help, versions, recipes and refusals import no torch; the tests list the modules of a fresh process."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

# Packages that take seconds or hundreds of megabytes to import, or that these commands never need.
HEAVY = {
    "torch", "torchvision", "timm", "torchmetrics", "numpy", "scipy", "sklearn", "PIL", "safetensors", "tensorboard",
    "huggingface_hub", "jinja2", "datasets", "onnx", "onnxruntime", "segmentation_models_pytorch", "lightning",
}  # fmt: skip
COMMANDS = (
    "quickstart", "distill", "evaluate", "adapt", "cache", "inspect", "export", "predict", "report", "import", "data",
    "data check", "recipes", "recipes show", "transfer", "transfer detection", "transfer segmentation",
)  # fmt: skip
ANSWERED = ("--help", *(f"{command} --help" for command in COMMANDS), "--version", "recipes", "recipes --json",
            "recipes show quickstart", "recipes show detection/maskrcnn-resnet50")  # fmt: skip
REFUSED = {
    "": "Usage: scalekd",
    "nonsense": "No such command",
    "distill --img-size 3": "did you mean '--resolution'",
    "distill": "output: none is given",
    "distill --output out --lr high": "lr: input should be a valid number",
    "distill --output out --method ofo": "method: input should be 'none'",
    "distill --output out --method kd --views spatial": "views is no key of method kd",
    "distill --output out --query proxy --no-tpp": "query: proxy needs tpp",
    "distill --output out --student-args '{pretrained: true}'": "student_args: pretrained cannot be set",
    "distill --output out --recipe quickstrat": "did you mean 'quickstart'",
    "distill --output out --recipe missing.yaml": "no such file",
    "distill --output out --recipe wrong.yaml": "did you mean 'epochs'",
    "distill --output out --auto-resume --resume": "auto-resume: decides by itself",
    "distill --check --output out": "check: writes nothing",
    "distill --check --batch many": "batch: input should be a valid integer",
    "evaluate a b": "add --knn or --linear",
    "evaluate a --precision half": "precision: input should be",
    "adapt vit_tiny_patch16_224 --output out --lr 1": "a probe trains nothing but a head",
    "adapt vit_tiny_patch16_224 --output out --batch 0": "batch: input should be greater than 0",
    "cache --cache-format int4": "cache_format: input should be",
    "inspect a b --batch x": "batch: input should be",
    "export run --format zip": "'zip' is not one of",
    "export run --format timm --int8": "are for onnx, not timm",
    "export run --format onnx --int8 --opset 9": "opset: --int8 needs 13 or above",
    "import a.pth --model resnet50 --output a.bin": "not a .safetensors file",
    "predict run a.jpg --json --csv": "exclude each other",
    "predict run a.jpg --batch x": "batch: input should be",
    "report run --precision half": "precision: input should be",
    "data check D --workers many": "workers: input should be",
    "recipes show nowhere": "no recipe 'nowhere'",
    "transfer detection --output out --lr high": "lr: input should be a valid number",
    "transfer segmentation --output out --recipe nowhere": "no recipe 'nowhere'",
    "transfer segmentation --output out --evaluate --resume": "evaluate: measures the run",
}
# Runs the command line and prints the imported modules at the end, also after an error.
WATCHED = """
import sys
sys.argv[0] = "scalekd"
from scalekd.cli.main import run
try:
    run()
finally:
    print("imported:", *sys.modules, file=sys.stderr)
"""


def answer(line: str, folder: Path) -> tuple[int, str, set[str]]:
    """Return the exit code, everything that was printed, and the imported packages."""
    command = [sys.executable, "-c", WATCHED, *shlex.split(line)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    said, _, modules = done.stderr.rpartition("imported: ")
    return done.returncode, done.stdout + said, {name.partition(".")[0] for name in modules.split()}


@pytest.mark.parametrize("line", ANSWERED)
def test_an_answer_needs_no_torch(line: str, tmp_path: Path) -> None:
    code, said, imported = answer(line, tmp_path)
    assert (code, imported & HEAVY) == (0, set()), said
    assert "scalekd" in imported


@pytest.mark.parametrize(("line", "why"), REFUSED.items())
def test_a_refusal_needs_no_torch(line: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("epoch: 3\n")
    code, said, imported = answer(line, tmp_path)
    assert (code, imported & HEAVY) == (2, set()), said
    assert why in " ".join(said.split())


def test_what_is_asked_of_the_package_is_imported_then(tmp_path: Path) -> None:
    code = "import sys, scalekd; assert 'torch' not in sys.modules; from scalekd import ScaleKD; import torch\n"
    code += "assert issubclass(ScaleKD, torch.nn.Module) and set(scalekd.__all__) <= set(dir(scalekd))\n"
    code += "assert [getattr(scalekd, name) for name in scalekd.__all__]\n"
    code += "try:\n    scalekd.Nothing\nexcept AttributeError as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no attribute 'Nothing'" in done.stdout
