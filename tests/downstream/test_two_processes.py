"""Training detectors and segmenters in two processes gives the same result as in one process that accumulates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from downstream_data import write_coco, write_scenes

COMMON = (
    *("--backbone", "resnet18", "--backbone-args", "{layers: [1, 1, 1, 1], channels: [8, 8, 16, 16]}"),
    *("--no-backbone-pretrained", "--workers", "0", "--log-every", "1", "--precision", "float32", "--pictures", "1"),
)
FLAGS = {
    "segmentation": (
        *("--decoder-channels", "16", "--short-side", "40", "--crop", "64", "--classes", "red,green,blue"),
        *("--steps", "3", "--batch", "4", "--micro-batch", "2", "--validate-every", "3", "--warmup-steps", "1"),
    ),
    "detection": (
        *(
            "--sizes",
            "64",
            "--max-size",
            "96",
            "--width",
            "16",
            "--hidden",
            "32",
            "--proposals",
            "32",
            "--empty-images",
        ),
        *("--batch", "2", "--micro-batch", "1", "--epochs", "2", "--warmup-steps", "0", "--lr", "0.0003"),
    ),
}


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_two_processes_train_as_one_that_accumulates(tmp_path: Path, task: str) -> None:
    write = {"segmentation": write_scenes, "detection": write_coco}[task]
    data = write(tmp_path / "data")
    losses = []
    for devices in (1, 2):
        output = tmp_path / f"run{devices}"
        command = (
            "transfer",
            task,
            "--data",
            data,
            "--output",
            output,
            *COMMON,
            *FLAGS[task],
            "--devices",
            str(devices),
        )
        ended = subprocess.run(
            [sys.executable, "-m", "scalekd", *map(str, command)],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["train/loss"] for line in lines if "train/loss" in line])
        result = json.loads((output / "result.json").read_text())
        assert result["processes"] == devices
        assert result.get("images", 2) == 2, "each validation image is counted once"
        assert list((output / "pictures").iterdir())
        assert ended.stdout.count("pictures in") == 1, "one process prints"
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
