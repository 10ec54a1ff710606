from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import camvid
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Cli, Outcome
from downstream_data import COLOURS, write_scenes
from PIL import Image
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from scalekd.data import Key
from scalekd.engine.learner import Learner
from scalekd.errors import UserError
from scalekd.hardware import pick_compute
from scalekd.models import Classifier
from scalekd.recipes import load_as, transfer_names
from scalekd.tasks.segmentation import Segmentation
from scalekd.tasks.segmentation.data import LabelledImages, SegmentationBatch, training_transform
from scalekd.tasks.segmentation.files import read_pairs
from scalekd.tasks.segmentation.measuring import Tally, palette
from scalekd.tasks.segmentation.model import Scores, Segmenter, predict
from scalekd.tasks.segmentation.run import try_segmenter
from scalekd.tasks.transfer.backbone import Backbone

TINY = (
    *("--backbone-args", "{layers: [1, 1, 1, 1], channels: [8, 8, 16, 16]}", "--no-backbone-pretrained"),
    *("--decoder-channels", "16", "--short-side", "40", "--crop", "32", "--classes", "red,green,blue", "--steps", "4"),
    *(
        "--batch",
        "4",
        "--lr",
        "0.01",
        "--workers",
        "0",
        "--log-every",
        "1",
        "--precision",
        "float32",
        "--pictures",
        "1",
    ),
)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "scenes")


@pytest.fixture
def run(cli: Cli, scenes: Path, tmp_path: Path) -> Cli:
    """Run a valid `transfer segmentation` command with further flags."""

    def call(*more: str | Path) -> Outcome:
        base = ("--data", scenes, "--output", tmp_path / "run", "--backbone", "resnet18")
        return cli("transfer", "segmentation", *base, *TINY, *more)

    return call


def settings(scenes: Path, **keys: object) -> Segmentation:
    return load_as(Segmentation, None, {"data": scenes, "classes": ["red", "green", "blue"], **keys})


def test_a_student_learns_to_segment_and_leaves_its_run(run: Cli, cli: Cli, tmp_path: Path) -> None:
    # Fewer steps or a higher rate amplify rounding to tens of points.
    outcome = run("--steps", "100", "--lr", "0.004", "--json", "--overwrite", "--scale-range", "1,1")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert result["miou"] > 60
    assert set(result["iou"]) == {"red", "green", "blue"}
    folder = tmp_path / "run"
    assert json.loads((folder / "result.json").read_text()) == result
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["val/miou"] == pytest.approx(result["miou"], abs=1e-2)
    picture = np.asarray(Image.open(folder / "pictures" / "000.png")).astype(int)
    assert picture.shape == (40, 3 * 48, 3)
    assert (picture[:4, 48:96] == picture[:4, :48]).all()  # unlabelled pixels are not coloured
    measured = ("transfer", "segmentation", "--output", folder, "--evaluate", "--json")
    assert json.loads(cli(*measured).out)["iou"] == result["iou"]
    other = json.loads(cli(*measured, "--flip-test", "--window", "32").out)["miou"]
    assert other > 50


def test_the_backbones_weights_are_taken_and_noted(run: Cli, cli: Cli, tmp_path: Path) -> None:
    args: dict[str, Any] = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    digest = Classifier("resnet18", pretrained=False, num_classes=3, **args).save(tmp_path / "student.safetensors")
    assert run("--backbone", tmp_path / "student.safetensors", "--backbone-args", "{}").code == 0
    assert json.loads((tmp_path / "run" / "inputs.json").read_text())["backbone weights"] == digest
    (tmp_path / "student.safetensors").unlink()  # the trained model does not need it
    assert cli("transfer", "segmentation", "--output", tmp_path / "run", "--evaluate").code == 0


def logged(run: Path) -> list[str]:
    """Read the log without the values that depend on the clock."""
    return [line for line in (run / "metrics.jsonl").read_text().splitlines() if "images_per_second" not in line]


@pytest.mark.parametrize("last", [2, 3])  # at a validation, and between two validations
@pytest.mark.parametrize("more", [(), ("--micro-batch", "2", "--ema", "0.5", "--precision", "bf16")])
def test_a_stopped_run_goes_on_to_the_same_weights(
    run: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], last: int
) -> None:
    more = (*more, "--validate-every", "2", "--json")
    whole = run(*more)
    assert whole.code == 0, whole.err
    lines = logged(tmp_path / "run")
    honest = Learner.optimizer_step

    def press_ctrl_c(learner: Learner, step: int) -> None:
        honest(learner, step)
        if step == last:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "optimizer_step", press_ctrl_c)
        stopped = run(*more, "--overwrite")
    assert stopped.code == 130
    assert f"stopped at step {last}" in stopped.err
    resumed = run(*more, "--resume")
    assert resumed.code == 0, resumed.err
    assert json.loads(resumed.out)["sha256"] == json.loads(whole.out)["sha256"]
    assert logged(tmp_path / "run") == lines


def test_a_run_is_neither_lost_nor_mixed(run: Cli) -> None:
    assert run().code == 0
    run().refused("finished run", "--overwrite")
    run("--resume").refused("is finished")
    run("--resume", "--overwrite").refused("exclude")
    run("--resume", "--lr", "0.1").refused("lr is 0.1")


def test_other_layouts_and_numbers_from_zero(run: Cli, scenes: Path) -> None:
    for split in ("training", "validation"):
        for kind, name in (("images", "img"), ("annotations", "mask")):
            (scenes / split).mkdir(exist_ok=True)
            (scenes / kind / split).rename(scenes / split / name)
    layout = ("--image-folder", "{split}/img", "--label-folder", "{split}/mask")
    outcome = run(*layout, "--no-zero-is-unlabelled", "--classes", "none,red,green,blue", "--json")
    assert outcome.code == 0, outcome.err
    assert set(json.loads(outcome.out)["iou"]) == {"none", "red", "green", "blue"}
    run(*layout, "--overwrite", "--no-zero-is-unlabelled").refused("has the value 3", "3 classes, numbered 0 to 2")


def test_what_does_not_fit_is_refused_in_one_line(run: Cli, scenes: Path, tmp_path: Path) -> None:
    images, labels = scenes / "images" / "training", scenes / "annotations" / "training"
    run("--classes", "red,green").refused("annotations/", ".png has the value 3", "2 classes, numbered 1 to 2")
    Image.new("RGB", (48, 40), (200, 0, 0)).save(labels / "3.png")
    run("--overwrite").refused("3.png", "channels RGB", "one channel", "#c80000")
    Image.new("L", (48, 39)).save(labels / "3.png")
    run("--overwrite").refused("3.png is 48x39", "is 48x40")
    (labels / "3.png").unlink()
    run("--overwrite").refused("3.jpg has no partner in")
    (images / "3.jpg").unlink()
    (images / "4.jpg").unlink()
    run("--overwrite").refused("4.png has no partner in")
    (labels / "4.png").unlink()
    for path in images.iterdir():
        path.unlink()
    run("--overwrite").refused("no images in", "training")
    run("--data", tmp_path / "nowhere", "--overwrite").refused("no such folder", "image_folder")


@pytest.mark.parametrize("kind", ["images", "annotations"])
def test_a_run_among_the_images_is_refused(run: Cli, scenes: Path, kind: str) -> None:
    """Its pictures would be read as images of the next one."""
    inside = scenes / kind / "validation" / "run"
    run("--output", inside).refused("output", "whose folders are read as images", "runs/run")
    assert not inside.exists()


def test_keys_that_do_not_fit_are_refused(run: Cli, cli: Cli, scenes: Path, tmp_path: Path) -> None:
    run("--num-classes", "4").refused("num_classes: 4, but 3 classes")
    run("--batch", "9").refused("batch: 9", "8 training images")
    run("--batch", "1").refused("at least 2 images at once")
    run("--micro-batch", "3").refused("micro_batch: 3")
    run("--window", "16", "--window-stride", "17").refused("window_stride: 17")
    run("--window-stride", "17").refused("window_stride: 17")
    run("--image-folder", "images").refused("image_folder", "{split}")
    run("--recipe", "segmentation/upernet-resnet51").refused("did you mean 'segmentation/upernet-resnet50'")
    run("--backbone-args", "{output_stride: 8}").refused("backbone", "strides 2, 4, 8")
    base = ("transfer", "segmentation", "--output", tmp_path / "none")
    cli(*base, "--data", scenes, "--backbone", "resnet18", "--batch", "4").refused("num_classes", "none is given")
    cli(*base, "--data", scenes, "--num-classes", "3", "--batch", "4").refused("--backbone")
    cli(*base, "--evaluate").refused("holds no run")


def test_a_part_that_fails_in_training_mode_is_named_and_refused_before_the_run(
    run: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Backbone._read

    def fail(part: Any, images: Tensor) -> list[Tensor]:
        if part.training:
            raise KeyError("aux")
        return read(part, images)

    monkeypatch.setattr(Backbone, "_read", fail)
    reason = "resnet18 cannot be trained on images [2, 3, 32, 32]: KeyError: 'aux'"
    run().refused(f"backbone: {reason}")
    monkeypatch.setattr(Backbone, "_read", read)
    monkeypatch.setattr(UPerNetDecoder, "forward", fail)
    run().refused(f"segmentation: UPerNet on {reason}")
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_the_step_that_is_tried_changes_nothing(scenes: Path) -> None:
    recipe = settings(scenes, crop=32, precision="float32", accelerator="cpu")
    backbone = Backbone("resnet18", pretrained=False, layers=[1, 1, 1, 1], channels=[8, 8, 16, 16])
    segmenter = Segmenter(backbone, 3, decoder_channels=16)
    before = {name: value.clone() for name, value in segmenter.state_dict().items()}
    state = torch.get_rng_state()
    try_segmenter(segmenter, recipe, pick_compute(recipe))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in segmenter.state_dict().items())
    assert all(parameter.grad is None for parameter in segmenter.parameters())


def test_an_unreadable_image_is_left_out_up_to_the_limit(run: Cli, scenes: Path) -> None:
    (scenes / "images" / "training" / "1.jpg").write_bytes(b"")
    (scenes / "annotations" / "validation" / "1.png").write_bytes(b"")
    run("--max-corrupt", "0").refused("1.", "max_corrupt")
    outcome = run("--overwrite", "--json")
    assert outcome.code == 0, outcome.err
    assert len(json.loads(outcome.out)["corrupt_images"]) == 2
    for image in (scenes / "images" / "training").iterdir():
        image.write_bytes(b"")
    run("--overwrite").refused("no image of a batch can be read", "max_corrupt")


def test_a_sample_follows_from_seed_epoch_and_index(scenes: Path) -> None:
    recipe = settings(scenes, short_side=40, crop=32)
    images = LabelledImages(read_pairs(recipe, "training"), recipe, training_transform(recipe))
    one, again, other = images[Key(1, 2)], images[Key(1, 2)], images[Key(2, 2)]
    assert torch.equal(one.images, again.images)
    assert torch.equal(one.labels, again.labels)
    assert not torch.equal(one.images, other.images)
    assert one.images.shape == (1, 3, 32, 32)
    assert one.labels.shape == (1, 32, 32)


def test_images_and_labels_are_augmented_alike(scenes: Path) -> None:
    recipe = settings(scenes, short_side=40, crop=32, photometric=0)
    images = LabelledImages(read_pairs(recipe, "training"), recipe, training_transform(recipe))
    for index in range(8):
        sample = images[Key(0, index)]
        pixels, labels = sample.images[0].permute(1, 2, 0).float(), sample.labels[0]
        shown = (pixels[..., None, :] - torch.tensor(COLOURS).float() - 15).square().sum(-1).argmin(-1)
        labelled = labels < 3
        assert (shown == labels)[labelled].float().mean() > 0.9  # except at the stripes' edges
        assert labelled.any()


def predicting(indices: Tensor) -> Any:
    """Return a model that predicts these class indices `[B, h, w]` for any images."""
    scores = F.one_hot(indices, 5).movedim(-1, 1).float()
    return lambda _: Scores(scores, None)


def test_figures_are_torchmetrics_own(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randint(0, 4, (2, 9, 9), generator=generator)
    labels = torch.randint(0, 3, (2, 9, 9), generator=generator)  # class 4 of 5 never occurs
    labels[0, 0] = 255
    tally = Tally(settings(tmp_path, classes=[], num_classes=5), torch.device("cpu"))
    for part in (slice(0, 1), slice(1, 2)):
        batch = SegmentationBatch(torch.zeros(1, 3, 9, 9), labels[part].byte(), {})
        tally.add(predicting(predicted[part]), batch)
    tally.add(predicting(predicted), SegmentationBatch(torch.empty(0), torch.empty(0), {}))  # nothing was readable
    figures = tally.figures()
    own = MulticlassJaccardIndex(5, ignore_index=255, average=None)(predicted, labels)
    assert figures.iou[:4] == pytest.approx([100 * float(value) for value in own[:4]])
    assert figures.iou[4] is None
    assert figures.miou == pytest.approx(100 * float(own[:4].mean()))
    right = (predicted == labels)[labels < 255].float().mean()
    assert figures.pixel_accuracy == pytest.approx(100 * float(right))


def test_windows_cover_each_pixel_and_are_averaged() -> None:
    seen: list[tuple[int, ...]] = []

    def model(images: Tensor) -> Scores:
        seen.append(tuple(images.shape[2:]))
        return Scores(torch.cat([images[:, :1], -images[:, :1]], dim=1), None)

    images = torch.rand(2, 3, 50, 70)
    whole = predict(model, images)
    torch.testing.assert_close(predict(model, images, window=32, stride=20), whole)  # all windows predict the same
    assert set(seen[1:]) == {(32, 32)}
    assert len(seen) == 1 + 2 * 3
    torch.testing.assert_close(predict(model, images, flip=True), whole)
    torch.testing.assert_close(predict(model, images, window=64), whole)  # larger than the image in one direction


def test_flipping_averages_the_mirrored_image() -> None:
    weights = torch.linspace(0, 1, 8)

    def model(images: Tensor) -> Scores:  # not symmetric in left and right
        scores = images[:, :1] * weights
        return Scores(torch.cat([scores, -scores], dim=1), None)

    images = torch.rand(1, 3, 4, 8)
    plain, mirrored = predict(model, images), predict(model, images.flip(-1)).flip(-1)
    torch.testing.assert_close(predict(model, images, flip=True), (plain + mirrored) / 2)
    assert not torch.allclose(plain, mirrored)


def test_colours_are_the_label_images_own_or_the_formulas(scenes: Path) -> None:
    recipe = settings(scenes)
    assert palette(read_pairs(recipe, "training"), recipe) == [(128, 0, 0), (0, 128, 0), (128, 128, 0)]
    first = scenes / "annotations" / "training" / "0.png"
    label = Image.open(first).convert("L")
    label.putpalette([0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    label.save(first)
    assert palette(read_pairs(recipe, "training"), recipe) == [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
    assert len(set(palette(read_pairs(recipe, "training"), settings(scenes, classes=[], num_classes=150)))) == 150


def test_the_recipes_are_the_papers(cli: Cli) -> None:
    recipes = {name: load_as(Segmentation, name, {}) for name in transfer_names() if name.startswith("segmentation/")}
    assert len(recipes) == 4
    for name in ("resnet50", "swin_tiny", "vit_base"):
        recipe = recipes[f"segmentation/upernet-{name}"]
        assert (recipe.steps, recipe.batch, recipe.crop, len(recipe.class_names)) == (160_000, 16, 512, 150)
        assert "160000" in cli("recipes", "show", f"segmentation/upernet-{name}").out
    assert "segmentation/camvid" in cli("recipes").out


def test_backbones_are_compared_by_equal_runs_and_gone_on_with(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args: dict[str, Any] = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    Classifier("resnet18", pretrained=False, num_classes=3, **args).save(tmp_path / "student.safetensors")
    keys = {
        flag.removeprefix("--").replace("-", "_"): value for flag, value in zip(TINY[3::2], TINY[4::2], strict=True)
    }
    values = [f"--set={key}={value}" for key, value in keys.items() if key != "classes"]
    output = tmp_path / "result.json"
    command = [
        *("camvid", "--data", str(scenes), "--runs", str(tmp_path / "runs"), "--output", str(output), "--seed", "3"),
        *("--backbone", f"distilled={tmp_path}", *values, "--set=validate_every=4"),
        *("--set=warmup_steps=0",),
    ]

    def main(*more: str) -> dict[str, Any]:
        monkeypatch.setattr("sys.argv", [*command, *more])
        camvid.main()
        content: dict[str, Any] = json.loads(output.read_text())
        return content

    one = main()
    assert one["summary"]["distilled"]["seeds"] == 1
    two = main("--seed", "4")
    assert two["runs"][0] == one["runs"][0]
    assert two["summary"]["distilled"]["seeds"] == 2
    assert "2 seeds" in capsys.readouterr().out
    with pytest.raises(UserError, match="weight_decay is"):
        main("--set=weight_decay=0.5")
