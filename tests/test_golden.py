from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from conftest import shared
from safetensors import safe_open
from safetensors.torch import save_file

CHECK = Path(__file__).with_name("golden_check.py")


def check(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(CHECK), str(folder)], capture_output=True, text=True, check=False)


def test_reference_values_are_reproduced() -> None:
    done = check(shared("golden"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


def test_a_wrong_value_fails_the_check(tmp_path: Path) -> None:
    for path in shared("golden").glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            meta = file.metadata()
        if "loss.student_frequency" in tensors:
            tensors["loss.student_frequency"] = tensors["loss.student_frequency"] * torch.tensor(1.001)
        save_file(tensors, tmp_path / path.name, metadata=meta)
    done = check(tmp_path)
    assert done.returncode == 1
    assert "FAILED" in done.stdout


def test_a_folder_without_files_fails_the_check(tmp_path: Path) -> None:
    assert check(tmp_path).returncode == 1
