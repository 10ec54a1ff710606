"""The GPU checklist measures every part, keeps what is done, and ends in time; see benchmarks/gpu.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gpu
import pytest
import torch
from gpu_parts import Scale
from pair import Pair

SMALL = {"patch_size": 8, "depth": 4, "embed_dim": 16, "num_heads": 2}
PAIR = Pair("vit_tiny_patch16_224", "vit_tiny_patch16_224", 32, 10, SMALL, SMALL)


def test_every_part_of_a_pair_is_measured() -> None:
    found: dict[str, dict[str, Any]] = {}
    scale = Scale(batch=4, warmup=1, steps=4, matmul_size=64, backend="eager")
    for task in gpu.TASKS.values():
        task(PAIR, scale, torch.device("cpu"), found.__setitem__)
    assert set(found) == {"agreement", "memory", "speed", "cache", "compile"}
    assert max(found["agreement"]["loss"].values()) < 0.05
    assert set(found["agreement"]["gradient"]) == {"student", "CAP_prev", "CAP_last"}
    assert all(0.9 < part["cosine"] < 1 for part in found["agreement"]["gradient"].values())
    assert found["cache"]["loss_difference"] == 0, "what is kept is what the live teacher says"
    assert found["cache"]["bytes_per_image"] == 2 * (16 * 16 + 10)
    assert found["compile"]["loss_difference"] < 0.01
    result = {"pairs": {"pair": {"models": {}, **found}}}
    assert len(gpu.table(result).splitlines()) == 15


def test_what_fails_or_has_no_time_left_is_said_and_the_rest_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps({"pairs": {"pair": {"speed": {"seconds": 1}}}}))
    record = gpu.recorder(file, "pair")
    record("speed", {"skipped": "too late"})
    gpu.run_child("pair", "compile", gpu.LEAST - 1, record)
    monkeypatch.setattr(gpu, "__file__", str(tmp_path / "missing.py"))
    gpu.run_child("pair", "eager", gpu.LEAST + 1, record)
    assert json.loads(file.read_text())["pairs"]["pair"] == {
        "speed": {"seconds": 1},
        "compile": {"skipped": "19 s of the time were left"},
        "eager": {"failed": "the process ended with exit code 2"},
    }


def test_without_a_gpu_it_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--output", str(tmp_path / "gpu.json")])
    assert gpu.main() == 2
    assert capsys.readouterr().err == (
        "error: device: there is no CUDA GPU here; --tiny tries the checklist on the CPU\n"
    )


@pytest.mark.slow
def test_the_tiny_checklist_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", "--output", str(file), "--seconds", "3000"])
    assert gpu.main() == 0
    for parts in json.loads(file.read_text())["pairs"].values():
        assert set(parts) == {"models", "agreement", "memory", "speed", "cache", "compile"}
