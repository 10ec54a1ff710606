"""A whole run resolves no address and opens no connection."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY_RUN

# Records and refuses every look-up and connection, except local ones (socket pairs, Unix sockets).
_WATCH = """
import os, socket, sys
def refuse(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.sendto") or (
        event in ("socket.connect", "socket.bind") and arguments[0].family != socket.AF_UNIX
    ):
        with open(os.environ["ASKED"], "a") as file:
            file.write(f"{event} {arguments[1:] or arguments}\\n")
        raise OSError(f"no network: {event}")
sys.addaudithook(refuse)
"""


@pytest.fixture
def watched(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which every python process records its look-ups and connections."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(_WATCH)
    path = os.pathsep.join([str(tmp_path / "watch"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "ASKED": str(tmp_path / "asked"), "HOME": str(tmp_path)}


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_watch_sees_a_connection(watched: dict[str, str], tmp_path: Path) -> None:
    for call in ("getaddrinfo('localhost', 1)", "socket().connect(('127.0.0.1', 1))"):
        assert "no network" in run([sys.executable, "-c", f"import socket; socket.{call}"], watched).stderr
    assert len((tmp_path / "asked").read_text().splitlines()) == 2


def test_a_run_asks_nobody(watched: dict[str, str], data: Path, teacher_file: Path, tmp_path: Path) -> None:
    alone = ["unshare", "--user", "--map-root-user", "--net"]  # a network without interfaces
    if shutil.which("unshare") is None or run([*alone, "true"], watched).returncode:
        alone = []  # this machine allows none; only the watch is used
    command = [*alone, sys.executable, "-m", "scalekd", "distill", "--teacher", str(teacher_file), "--no-check-teacher"]
    ended = run(
        [*command, "--data", str(data), "--output", str(tmp_path / "run"), *TINY_RUN, "--workers", "1"], watched
    )
    assert ended.returncode == 0, ended.stderr
    assert not (tmp_path / "asked").exists(), (tmp_path / "asked").read_text()


def test_a_local_table_is_read_without_asking(watched: dict[str, str], data: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    paths = sorted((data / "train").glob("*/*"))
    rows = {"image": [{"bytes": p.read_bytes(), "path": None} for p in paths], "label": [p.parent.name for p in paths]}
    for split in ("train", "val"):
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "table" / f"{split}.parquet")
    command = [sys.executable, "-m", "scalekd", "data", "check", f"hf:{tmp_path / 'table'}", "--workers", "0"]
    assert run(command, watched).returncode == 1, "both splits are equal"
    assert not (tmp_path / "asked").exists(), (tmp_path / "asked").read_text()
