"""Uploads to the hub, tested with a local server that keeps the files it receives."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import timm
import torch
from conftest import CLASSES, TINY_CNN, Cli

from scalekd.models import Classifier


class Hub(BaseHTTPRequestHandler):
    """Answers the few requests of an upload; files are part of the commit request."""

    files: dict[str, bytes] = {}  # noqa: RUF012 (one server at a time)
    created: list[dict[str, Any]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/api/repos/create"):
            self.created.append(json.loads(body))
            self._answer({"url": f"{self.address}/me/student", "id": "me/student"})
        elif "/preupload/" in self.path:
            wanted = json.loads(body)["files"]
            self._answer(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in wanted]}
            )
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self.address}/me/student/commit/1"
            self._answer({"success": True, "commitOid": "1" * 40, "commitUrl": url, "hookOutput": ""})
        else:
            self._answer({"ok": True})

    def do_GET(self) -> None:
        self._answer({"id": "me/student", "sha": "0" * 40, "siblings": [], "name": "me"})

    @property
    def address(self) -> str:
        return f"http://{self.headers['Host']}"

    def _answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    Hub.files, Hub.created = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    # Patched here, because the library reads HF_ENDPOINT and HF_TOKEN only when it is imported.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield Hub
    server.shutdown()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    model = Classifier("resnet18", pretrained=False, num_classes=3, resolution=32, **TINY_CNN)
    model.save(tmp_path / "cnn.safetensors", CLASSES)
    return tmp_path / "cnn.safetensors"


def test_the_folder_arrives_as_it_is(cli: Cli, hub: type[Hub], weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    command = ("export", weights, "--format", "timm", "--output", folder, "--push-to-hub", "me/student", "--private")
    folder.mkdir()
    (folder / "private.txt").write_text("not of the export")
    outcome = cli(*command)
    assert outcome.code == 0, outcome.err
    assert "uploaded" in outcome.out
    assert hub.created[0]["name"] == "student"
    assert hub.created[0].get("private") is True or hub.created[0].get("visibility") == "private"
    (folder / "private.txt").unlink()
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    received = tmp_path / "received"
    received.mkdir()
    for name, content in hub.files.items():
        (received / name).write_bytes(content)
    images = torch.rand(1, 3, 32, 32)
    sent, got = (timm.create_model(f"local-dir:{place}", pretrained=True).eval() for place in (folder, received))
    with torch.no_grad():
        assert torch.equal(sent(images), got(images))


def test_a_hub_that_is_not_there_is_told_in_a_line(
    cli: Cli, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    command = ("export", weights, "--format", "timm", "--output", tmp_path / "folder", "--push-to-hub", "me/student")
    cli(*command).refused("push_to_hub", "me/student", "127.0.0.1:9")
    assert (tmp_path / "folder" / "model.safetensors").exists()
    cli(*command[:-1], "me/x/y/z", "--overwrite").refused("push_to_hub", "me/x/y/z")
