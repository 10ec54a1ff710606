"""A file is replaced by a whole one that is on the disk, or stays as it was."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from scalekd.atomic import replacing, write_bytes


def test_a_file_that_is_not_finished_leaves_the_one_before_it(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_bytes(file, b"before")
    with pytest.raises(RuntimeError, match="stop"), replacing(file) as partial:  # noqa: PT012
        partial.write_bytes(b"half")
        raise RuntimeError("stop")
    assert file.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_disk_names_the_file_and_leaves_the_one_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    write_bytes(file, b"before")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_bytes(file, b"after")
    assert caught.value.filename == str(file)
    assert file.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_has_its_name_only_once_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, seen = os.fsync, []

    def noted(descriptor: int) -> None:
        seen.append((tmp_path / "file").exists())
        honest(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    write_bytes(tmp_path / "file", b"content")
    assert seen == [False, True], "the file, then the folder's names"


def test_what_a_killed_process_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file.partial").write_bytes(b"a longer half")
    write_bytes(tmp_path / "file", b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert len(list(tmp_path.iterdir())) == 1


def test_processes_that_write_one_file_concurrently_do_not_meet(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with replacing(file, concurrently=True) as one, replacing(file, concurrently=True) as other:
        assert one != other
        one.write_bytes(b"one")
        other.write_bytes(b"other")
    assert file.read_bytes() == b"one", "the last to end"
    assert list(tmp_path.iterdir()) == [file]
