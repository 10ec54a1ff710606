"""Training processes that are killed at random moments and resumed end as if nothing had been."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from attempts import CODES, assert_same, ended, start
from conftest import TINY_RUN

SETTINGS = (
    *("--ema", "0.9", "--mixup", "0.2", "--batch", "4", "--micro-batch", "2", "--epochs", "24"),
    *("--validate-every", "3", "--workers", "1", "--checkpoint-minutes", "0.001", "--no-check-teacher"),
)
SIGNALS = (signal.SIGKILL,) * 6 + (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.mark.parametrize("kills", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_again_and_again_ends_the_same(
    data: Path, teacher_file: Path, tmp_path: Path, kills: int
) -> None:
    settings = ("--data", data, *TINY_RUN, "--teacher", teacher_file, *SETTINGS)
    whole, run, log = tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    began = time.monotonic()
    assert ended(start(log, "distill", "--output", whole, *settings)) == 0, log.read_text()
    duration = time.monotonic() - began
    draw, done = random.Random(0), Counter[str]()
    while True:
        resumes = (run / "recipe.yaml").exists()
        log.unlink(missing_ok=True)
        child = start(log, "distill", "--output", run, *(("--resume",) if resumes else settings))
        last = done.total() >= kills
        if not last:
            time.sleep(draw.uniform(0.05, 0.6) * duration)
            number = draw.choice(SIGNALS)
            os.kill(child, number)  # which waits for its parent, ended or not
        code = ended(child)
        if code:
            assert not last, log.read_text()
            assert code == CODES[number], log.read_text()
            # Workers whose main process is gone may say so.
            assert number == signal.SIGKILL or "Traceback" not in log.read_text(), log.read_text()
            done[number.name] += 1
            continue
        assert_same(run, whole)
        if last:
            break
        shutil.rmtree(run)  # it was faster: once more
    print(dict(done))
