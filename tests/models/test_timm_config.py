"""Models specified by a folder or a hub name: their configuration, and a hub that does not answer."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import timm.models._hub as hub
import torch
from safetensors.torch import save_file

from scalekd import Student, Teacher
from scalekd.errors import UserError
from scalekd.models import Classifier, timm_config
from scalekd.models.weights import read_weights

VIT: dict[str, Any] = {"embed_dim": 48, "depth": 3, "num_heads": 2}
NAME = "hf-hub:someone/model"


def write_repository(folder: Path, *, architecture: str = "vit_small_patch14_dinov2", **more: Any) -> Path:
    """A tiny ViT of 112 px and three classes, as timm uploads it to the hub."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch14_dinov2", num_classes=3, img_size=112, **VIT)
    save_file(model.state_dict(), folder / "model.safetensors")
    images = {"input_size": [3, 112, 112], "fixed_input_size": True, "mean": [0.5] * 3, "std": [0.25] * 3}
    config = {
        "architecture": architecture, "num_classes": 3, "label_names": ["a", "b", "c"], "model_args": VIT,
        "pretrained_cfg": images | {"classifier": "head", "num_classes": 3, "crop_pct": 0.9},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | more))
    return folder


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub that answers and has a single repository, stored in a folder."""
    folder = tmp_path / "repository"

    def download(repo_id: str, filename: str, **_: Any) -> str:
        assert repo_id == "someone/model"
        if not (folder / filename).is_file():
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
        return str(folder / filename)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(timm_config, "_answers", lambda: True)
    return write_repository(folder)


def test_a_hub_name_has_the_resolution_and_head_of_its_configuration(repository: Path, tmp_path: Path) -> None:
    teacher = Teacher(NAME)
    assert (teacher.resolution, str(teacher.tokens), teacher.classes) == (112, "8x8x48", ("a", "b", "c"))
    assert teacher.mean.flatten().tolist() == [0.5] * 3
    assert Teacher(NAME, resolution=56).tokens.positions == 16
    student = Student(NAME, num_classes=5, pretrained=True)
    assert (student.num_classes, student.resolution, student.classes) == (5, 112, ())
    teacher.save(tmp_path / "saved.safetensors")
    card = read_weights(tmp_path / "saved.safetensors")[1]
    assert card is not None
    assert card.architecture == "vit_small_patch14_dinov2"
    images = torch.rand(1, 3, 112, 112)
    again = Teacher(tmp_path / "saved.safetensors")
    torch.testing.assert_close(again(images).logits, teacher(images).logits)


def test_weights_beside_a_hub_name_are_read_as_its_configuration_says(repository: Path) -> None:
    plain = Classifier(NAME, weights=repository / "model.safetensors")
    assert (plain.num_classes, plain.resolution) == (3, 112)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "resnet18", "model_args": {}}, "not a vision transformer"),
        ({"architecture": "bert"}, "names 'bert', which timm does not know"),
        ({"model_args": {"checkpoint_path": "aux.pth"}}, "wants to set checkpoint_path"),
    ],
)
def test_a_configuration_that_cannot_teach_is_refused_before_its_weights(
    repository: Path, change: dict[str, Any], message: str
) -> None:
    write_repository(repository, **change)
    (repository / "model.safetensors").unlink()
    with pytest.raises(UserError, match=message):
        Teacher(NAME)


def test_a_configuration_of_another_library_is_no_timm_model(repository: Path) -> None:
    (repository / "config.json").write_text('{"model_type": "dinov2"}')
    with pytest.raises(UserError, match=r"config\.json of hf-hub:someone/model is not timm's"):
        Teacher(NAME)


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_that_does_not_answer_is_told_at_once(offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    reason = "HF_HUB_OFFLINE is set" if offline else "does not answer"
    started = time.monotonic()
    for name in ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", "hf-hub:someone/nowhere"):
        with pytest.raises(UserError, match=f"not in the local cache, and .*{reason}") as refusal:
            Teacher(name)
        assert "\n" not in str(refusal.value)
    assert time.monotonic() - started < 20, "the hub's library asks for a minute"
    assert huggingface_hub.constants.HF_HUB_OFFLINE is offline


def test_timms_folder_is_a_teacher(tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "model")
    teacher = Teacher(folder)
    assert (teacher.name, teacher.resolution, teacher.classes) == ("vit_small_patch14_dinov2", 112, ("a", "b", "c"))
    with pytest.raises(UserError, match="has its own weights"):
        Teacher(folder, weights=folder / "model.safetensors")


def test_folders_of_adapt_and_of_finished_runs_are_models(tmp_path: Path, teacher_file: Path, student: Student) -> None:
    assert Teacher(teacher_file.parent).classes == ("blue", "green", "red")
    run = tmp_path / "run"
    Teacher(teacher_file).save(run / "student.safetensors")
    with pytest.raises(UserError, match=r"the run in .* is not finished; resume it"):
        Teacher(run)
    (run / "result.json").write_text("{}")
    assert Teacher(run).num_classes == 3
    student.save(run / "student.safetensors")
    with pytest.raises(UserError, match="resnet18 is not a vision transformer"):
        Teacher(run)
    with pytest.raises(UserError, match=r"specify the folder of one of its runs: .*run"):
        Teacher(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no teacher\.safetensors, no finished run's student\.safetensors"):
        Teacher(tmp_path / "empty")


@pytest.mark.parametrize(
    "name", ["resnet50", "resnet18.a1_in1k", "convmixer_768_32", "mixer_s32_224", "torchvision:vgg11"]
)
def test_what_cannot_teach_is_refused_before_anything_is_fetched(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(*_: Any, **__: Any) -> None:
        raise AssertionError("something was fetched")

    monkeypatch.setattr(hub, "hf_hub_download", fetched)
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetched)
    monkeypatch.setattr(timm_config, "_answers", fetched)
    state = torch.get_rng_state()
    with pytest.raises(UserError, match=r"not a vision transformer|not a timm model"):
        Teacher(name)
    assert torch.equal(torch.get_rng_state(), state), "looking changes no random weights"
