"""Locks keep out other users and other threads of a process, and a lock on a removed file keeps out nobody.

Other processes: tests/training/test_faults.py.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from scalekd.data.cache import Layout, TeacherCache
from scalekd.data.cache import store as cache_store
from scalekd.locks import alone, leads_to, lock


def test_a_second_user_in_one_process_is_kept_out_until_the_first_closes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("a") as one, path.open("a") as other:
        assert lock(one, wait=False)
        assert not lock(other, wait=False)
        one.close()
        assert lock(other, wait=False)


def test_threads_are_alone_in_a_folder_one_after_the_other(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        with alone(tmp_path / "made"):
            inside += 1
            most = max(most, inside)
            time.sleep(0.05)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_removed_file_is_no_longer_where_its_path_leads(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("a") as file:
        assert leads_to(path, file)
        path.unlink()
        assert not leads_to(path, file)
        path.touch()
        assert not leads_to(path, file), "another file"


def test_a_claim_of_a_file_that_was_removed_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = TeacherCache(tmp_path, 1, Layout(positions=2, width=3, classes=0, dtype=torch.float32, cache_format="bf16"))
    shard = cache.shards(1)[0]

    def late(file: Any, *, wait: bool) -> bool:
        Path(file.name).unlink()  # its owner is done
        return lock(file, wait=wait)

    with cache.claim(shard) as ours, cache.claim(shard) as second:
        assert ours
        assert not second
    monkeypatch.setattr(cache_store, "lock", late)
    with cache.claim(shard) as ours:
        assert not ours
