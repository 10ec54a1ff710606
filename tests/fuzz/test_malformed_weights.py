"""Weights and checkpoints that lie: refused in one line, and nothing in them is executed."""

from __future__ import annotations

import json
import os
import pickle
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_RUN, TINY_SETTINGS, TINY_STUDENT, Cli
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from scalekd.errors import UserError
from scalekd.models import Classifier
from scalekd.models.weights import read_weights


class Evil:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def write_evil(path: Path, mark: Path) -> Path:
    """A checkpoint as torch writes it, and would run it without `weights_only`."""
    torch.save({"global_step": 2, "optimizer_states": [0], "state_dict": {"x": Evil(mark)}}, path)
    return path


def test_the_pickle_would_run(tmp_path: Path) -> None:
    path = write_evil(tmp_path / "evil.pth", tmp_path / "mark")
    torch.load(path, weights_only=False)
    assert (tmp_path / "mark").is_dir()
    (tmp_path / "mark").rmdir()
    pickle.loads(pickle.dumps(Evil(tmp_path / "mark")))
    assert (tmp_path / "mark").is_dir()


@pytest.mark.parametrize("name", ["evil.pth", "evil.bin", "evil.pt", "evil.ckpt", "evil.safetensors"])
def test_no_file_that_a_command_reads_is_unpickled(
    cli: Cli, data: Path, teacher_file: Path, tmp_path: Path, name: str
) -> None:
    mark, evil = tmp_path / "mark", tmp_path / name
    run = ("distill", "--data", data, "--output", tmp_path / "run", "--no-check-teacher", *TINY_SETTINGS)
    for raw in (False, True):
        write_evil(evil, mark)
        if raw:
            evil.write_bytes(pickle.dumps(Evil(mark)))
        for command in (
            (*run, *TINY_STUDENT, "--teacher", "vit_tiny_patch16_224", "--teacher-weights", evil),
            (*run, *TINY_STUDENT, "--teacher", evil),
            (*run, *TINY_STUDENT, "--method", "none", "--student-weights", evil),
            (*run, "--student", evil, "--method", "none"),
            ("adapt", evil, "--data", data, "--output", tmp_path / "adapted"),
            ("evaluate", "resnet18", "--weights", evil, "--data", data),
            ("inspect", evil, "resnet18"),
            ("inspect", teacher_file, evil),
            *([] if name.endswith(".ckpt") else [("evaluate", evil, "--data", data)]),
        ):
            cli(*command).refused(name, "pickle")
            assert not mark.exists()


def test_no_file_of_a_run_is_unpickled(cli: Cli, data: Path, tmp_path: Path) -> None:
    run, mark = tmp_path / "run", tmp_path / "mark"
    trained = cli("distill", "--method", "none", "--data", data, "--output", run, *TINY_RUN)
    assert trained.code == 0, trained.err
    (run / "result.json").unlink()
    for checkpoint in (run / "checkpoints").glob("*.ckpt"):
        write_evil(checkpoint, mark)
    cli("distill", "--resume", "--output", run).refused(".ckpt")
    assert not mark.exists()
    write_evil(run / "student.safetensors", mark)
    cli("evaluate", run).refused("student.safetensors", "pickle")
    assert not mark.exists()


def head_and_body(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def packed(head: bytes, body: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(head) if size is None else size) + head + body


def refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError, match="weights: ") as error:
        Classifier(path)
    assert str(error.value).isprintable()


def test_headers_that_lie_are_refused(teacher_file: Path, tmp_path: Path) -> None:
    head, body = head_and_body(teacher_file)
    text, path = json.dumps(head).encode(), tmp_path / "lie.safetensors"
    for size in (0, 1, 7, len(text) - 1, len(text) + 1, 2**31, 2**63, 2**64 - 1):
        refused(path, packed(text, body, size))
    for content in (
        b"",
        b"x" * 1000,
        text[:100],
        packed(b"[" * 5000, body),
        packed(text, body[:-8]),
        packed(b"{}", b""),
    ):
        refused(path, content)
    first = next(name for name in head if name != "__metadata__")
    for lie in (
        *({"data_offsets": offsets} for offsets in ([0, 4], [4, 0], [-1, 4], [0, 10**18], [0], "x")),
        *({"shape": shape} for shape in ([], [0], [-1], [10**18], [2**63, 2], None)),
        *({"dtype": dtype} for dtype in ("F64", "I8", "BOOL", "F4", "U64", "X", "", 5)),
    ):
        refused(path, packed(json.dumps(head | {first: head[first] | lie}).encode(), body))
    for key, metadata in (("x", 5), ("scalekd", None), ("scalekd", {"a": 1}), ("scalekd", [1])):
        refused(path, packed(json.dumps(head | {"__metadata__": {key: metadata}}).encode(), body))


CARDS = ["", "{", "[]", "5", "null", '"x"', "[" * 5000, "{}", '{"architecture": "resnet18"}']
VALUES: list[Any] = [
    None,
    -1,
    10**12,
    "x",
    [],
    [1],
    ["a"],
    {},
    [[1]],
    "\x1b[31m",
    [1, 2, "x"],
    [1, 2, 1e999],
    "python:os.system",
]


def test_cards_of_wrong_types_are_refused(teacher_file: Path, tmp_path: Path) -> None:
    state, path = load_file(teacher_file), tmp_path / "card.safetensors"

    def write(card: str) -> bytes:
        save_file(state, path, metadata={"scalekd": card})
        return path.read_bytes()

    for card in CARDS:
        refused(path, write(card))
    whole = json.loads(head_and_body(teacher_file)[0]["__metadata__"]["scalekd"])
    for key in ("architecture", "num_classes", "resolution", "mean", "std", "crop_fraction", "args"):
        for value in VALUES:
            if (key, value) != ("args", {}):
                refused(path, write(json.dumps(whole | {key: value})))
    for other in ({"foreign": 1}, {"classes": [1]}, {"classes": "abc"}, {"top1": "x"}):
        refused(path, write(json.dumps(whole | other)))


@settings(max_examples=300)
@given(places=st.lists(st.integers(0, 3000), min_size=1, max_size=4), byte=st.sampled_from(b'[]{}",:0915x\0\xff'))
def test_flipped_bytes_of_a_header_are_read_or_refused(
    teacher_file: Path, tmp_path_factory: pytest.TempPathFactory, places: list[int], byte: int
) -> None:
    content = bytearray(teacher_file.read_bytes())
    for place in places:
        content[place] = byte
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    path.write_bytes(content)
    with suppress(UserError):
        read_weights(path)


def test_position_embeddings_of_no_image_are_refused(teacher_file: Path, tmp_path: Path) -> None:
    state, path = load_file(teacher_file), tmp_path / "shapes.safetensors"
    tiny = {"patch_size": 8, "depth": 3, "embed_dim": 32, "num_heads": 2}
    for name in ("pos_embed", "patch_embed.proj.weight"):
        for shape in ((), (1,), (0,), (1, 1, 1), (2, 7, 7, 7)):
            save_file(state | {name: torch.zeros(shape)}, path)
            with pytest.raises(UserError, match=r"shapes\.safetensors does not fit"):
                Classifier("vit_tiny_patch16_224", weights=path, pretrained=False, **tiny)
