"""Each wrong input ends in one clear line and exit code 2."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import TINY_RUN, TINY_SETTINGS, Cli, Outcome
from PIL import Image
from safetensors.torch import save_file

from scalekd.models import Classifier


@pytest.fixture
def run(cli: Cli, data: Path, teacher_file: Path, tmp_path: Path) -> Cli:
    """Run a valid `distill` command with further flags."""

    def call(*more: str | Path) -> Outcome:
        base = ("--data", data, "--output", tmp_path / "run", "--teacher", teacher_file, "--no-check-teacher")
        outcome = cli("distill", *base, *(TINY_SETTINGS if "--student" in more else TINY_RUN), *more)
        if outcome.code == 2:
            assert not (tmp_path / "run" / "student.safetensors").exists()
        return outcome

    return call


def test_the_run_would_work(run: Cli) -> None:
    assert run().code == 0


def test_an_unknown_recipe_key_suggests_the_nearest(run: Cli, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("leraning_rate: 1\nmomentun: 0.9\n")
    run("--recipe", tmp_path / "my.yaml").refused("leraning_rate", "did you mean 'lr'")
    (tmp_path / "my.yaml").write_text("momentun: 0.9\n")
    run("--recipe", tmp_path / "my.yaml").refused("my.yaml", "'momentun'", "did you mean 'momentum'")


def test_an_unknown_flag_is_named(run: Cli, cli: Cli) -> None:
    run("--epoch", "3").refused("--epoch", "did you mean '--epochs'?")
    run("--learning-rate", "0.1").refused("did you mean '--lr'?")
    run("--wd", "0.1").refused("did you mean '--weight-decay'?")
    run("--no-chek-teacher").refused("did you mean '--no-check-teacher'?")
    assert "did you mean" not in run("--xyzw", "3").err
    assert "did you mean" not in cli("report", "--runs", "3").err  # its positional arguments are not suggested


def test_an_unknown_recipe_suggests_the_nearest(run: Cli) -> None:
    run("--recipe", "imagenete").refused("did you mean 'imagenette'")


def test_a_wrong_value_is_named(run: Cli) -> None:
    run("--epochs", "none").refused("epochs", "none")
    run("--max-pixels", "0").refused("max_pixels", "0")
    run("--student-args", "depth").refused("student_args", "depth")
    run("--student-args", "{drop_path_rate:0.05}").refused("student_args", "'drop_path_rate:0.05' has no value")


def test_an_unknown_model_name_suggests_the_nearest(run: Cli) -> None:
    run("--student", "resnet51", "--batch", "600").refused("resnet51", "did you mean 'resnet")
    run("--teacher", "swin_larg_patch4_window7_224").refused("did you mean 'swin_large_patch4_window7_224'")


def test_a_model_argument_that_does_not_exist_is_named(run: Cli) -> None:
    run("--student-args", "{dept: 3}").refused("resnet18", "dept")


def test_a_teacher_that_is_no_vision_transformer_is_refused(run: Cli, tmp_path: Path) -> None:
    Classifier("resnet10t", pretrained=False, num_classes=3).save(tmp_path / "cnn.safetensors")
    run("--teacher", tmp_path / "cnn.safetensors").refused("resnet10t", "not a vision transformer")


def test_no_teacher_no_student_and_no_data_are_named(cli: Cli, data: Path, tmp_path: Path) -> None:
    cli("distill", "--output", tmp_path / "x", "--student", "resnet18").refused("--data")
    cli("distill", "--output", tmp_path / "x", "--data", data, "--student", "resnet18", "--batch", "4").refused(
        "--teacher"
    )
    cli("distill", "--output", tmp_path / "x", "--data", data, "--method", "none", "--batch", "4").refused("--student")


def test_a_missing_data_folder_is_named(run: Cli, tmp_path: Path) -> None:
    run("--data", tmp_path / "nowhere").refused("no such folder", "nowhere")
    (tmp_path / "empty").mkdir()
    run("--data", tmp_path / "empty").refused("has no folder 'train'")


def test_one_class_is_refused(run: Cli, data: Path) -> None:
    for split in ("train", "val"):
        for name in ("red", "green"):
            shutil.rmtree(data / split / name)
    run().refused("one class", "blue")


def test_different_classes_in_train_and_val_are_named(run: Cli, data: Path) -> None:
    shutil.rmtree(data / "val" / "green")
    run().refused("classes differ", "green")


def test_another_class_count_than_the_teachers_points_to_adapt(run: Cli, data: Path) -> None:
    for split in ("train", "val"):
        shutil.copytree(data / split / "red", data / split / "violet")
    run().refused("3 classes", "4 classes", "scalekd adapt", "logit_weight")
    assert run("--logit-weight", "0").code == 0


def test_the_same_classes_in_another_order_are_refused(run: Cli, data: Path) -> None:
    for split in ("train", "val"):
        (data / split / "red").rename(data / split / "amber")
    run().refused("'blue'", "'amber'")


def test_unreadable_images_are_skipped_up_to_the_limit(run: Cli, data: Path, tmp_path: Path) -> None:
    bad = data / "train" / "red" / "1.png"
    bad.write_bytes(b"")
    run("--max-corrupt", "0").refused("1.png", "max_corrupt")
    assert run("--overwrite").code == 0
    assert str(bad) in (tmp_path / "run" / "result.json").read_text()
    assert f"warning: left out, cannot be read: {bad}" in run("--overwrite").err


def test_images_of_too_many_pixels_are_skipped_up_to_the_limit(run: Cli, data: Path) -> None:
    large = data / "train" / "red" / "1.png"
    with Image.open(large) as image:
        image.resize((50, 50)).save(large)
    told = f"{large} (50 x 50 pixels; max_pixels is 2499)"
    run("--max-pixels", "2499", "--max-corrupt", "0").refused(told)
    assert f"warning: left out, cannot be read: {told}" in run("--max-pixels", "2499", "--overwrite").err
    assert "left out, cannot" not in run("--max-pixels", "2500", "--overwrite").err


def test_files_that_are_no_images_are_left_out(run: Cli, data: Path) -> None:
    (data / "train" / "red" / "Thumbs.db").write_bytes(b"x")
    outcome = run()
    assert outcome.code == 0
    assert "12 training" in outcome.err


def test_a_batch_larger_than_the_data_is_refused(run: Cli) -> None:
    run("--batch", "60").refused("batch", "60", "12 training images")


def test_a_micro_batch_that_does_not_divide_the_batch_is_refused(run: Cli) -> None:
    run("--micro-batch", "4").refused("micro_batch", "4", "6")


def test_weights_of_another_architecture_say_which_keys(run: Cli, tmp_path: Path) -> None:
    save_file(timm.create_model("resnet10t").state_dict(), tmp_path / "other.safetensors")
    run("--student-weights", tmp_path / "other.safetensors").refused("other.safetensors", "keys", "layer1")


def test_a_pickle_is_refused(run: Cli, tmp_path: Path) -> None:
    torch.save({}, tmp_path / "weights.pth")
    run("--student-weights", tmp_path / "weights.pth").refused("weights.pth", "pickle")


@pytest.mark.parametrize("kept", [3, 100, 5000])
def test_a_weights_file_that_was_cut_off_is_called_incomplete(
    run: Cli, teacher_file: Path, tmp_path: Path, kept: int
) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(teacher_file.read_bytes()[:kept])
    refused = run("--student-weights", cut)
    refused.refused("cut.safetensors is incomplete, corrupt or not a safetensors file", "copy or download it again")
    assert "pickle" not in refused.err


@pytest.mark.parametrize("length", [b"PK", b"\x80\x04"])
def test_a_header_length_that_looks_like_a_pickle_is_none(run: Cli, tmp_path: Path, length: bytes) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(length + bytes(6) + b'{"a": ')
    run("--student-weights", cut).refused("incomplete, corrupt or not a safetensors file")


def test_an_argument_that_follows_the_data_cannot_be_given(run: Cli) -> None:
    run("--student-args", "{num_classes: 5}").refused("student_args", "num_classes")


def test_too_few_images_for_a_probe_are_named(cli: Cli, data: Path, teacher_file: Path, tmp_path: Path) -> None:
    for name in ("0", "1"):
        (data / "train" / "red" / f"{name}.png").unlink()
    cli("adapt", teacher_file, "--data", data, "--resolution", "32", "--output", tmp_path / "t").refused(
        "2 training image"
    )


def test_heads_that_do_not_divide_the_width_are_refused(run: Cli) -> None:
    run("--heads", "5,8").refused("heads", "5", "32")


def test_a_resolution_the_teacher_cannot_take_is_refused(run: Cli) -> None:
    run("--teacher-resolution", "36").refused("teacher_resolution", "patches of 8 pixels", "use 32 or 40")


def test_a_key_of_another_method_is_refused(run: Cli) -> None:
    run("--method", "kd", "--views", "spatial").refused("views is no key of method kd", "scalekd")
    run("--ofa-gamma", "2").refused("ofa_gamma is no key of method scalekd")


def test_maps_that_do_not_exist_or_are_no_maps_are_refused(run: Cli) -> None:
    run("--student-maps", "3,9").refused("student_maps", "no map 9", "0 to 4")
    run("--student-maps", "layer3,layer9").refused("student_maps", "'layer9'")
    run("--student-maps", "layer3,fc").refused("student_maps", "'fc'", "[1, 3]")
    run("--student-maps", "layer3").refused("student_maps")
    own = ("--student", "torchvision:mobilenet_v3_small", "--student-args", "{}")
    run(*own).refused("student_maps", "features.8 (")
    run(*own, "--student-maps", "features.8,classifier").refused("'classifier'")


def test_a_student_with_one_map_is_refused(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    build = timm.create_model

    def short(*args: Any, **kwargs: Any) -> Any:
        model = build(*args, **kwargs)
        if hasattr(model, "layer4"):
            model.feature_info = model.feature_info[-1:]
        return model

    monkeypatch.setattr(timm, "create_model", short)
    run().refused("resnet18 has 1 feature map", "student_maps")


def test_tail_blocks_of_a_teacher_with_stages_are_refused(cli: Cli) -> None:
    cli("inspect", "swin_tiny_patch4_window7_224", "resnet18", "--tail-blocks", "3").refused(
        "tail_blocks", "last stage"
    )


def test_a_plan_with_impossible_factors_is_refused(cli: Cli) -> None:
    pair = ("inspect", "vit_tiny_patch16_224", "resnet18")
    cli(*pair, "--device", "h1000").refused("device", "did you mean 'h100'")
    cli(*pair, "--utilisation", "1.5").refused("utilisation", "1.5")
    cli(*pair, "--micro-batch", "7").refused("micro_batch", "7", "256")
    cli("inspect", "vit_tiny_patch16_224").refused("student", "TEACHER and STUDENT")


def test_an_output_that_cannot_be_a_folder_is_refused(run: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run("--output", tmp_path / "file" / "run").refused("output", "cannot be written")


def test_evaluating_nothing_or_the_wrong_thing_is_refused(
    cli: Cli, data: Path, tmp_path: Path, teacher_file: Path
) -> None:
    cli("evaluate", teacher_file).refused("--data")
    cli("evaluate", tmp_path, "--data", data).refused("holds no run")
    cli("evaluate", tmp_path / "nowhere").refused("no such file or folder", "nowhere")
    cli("evaluate", tmp_path / "none.safetensors", "--data", data).refused("no such file")
    for program in ("student.onnx", "student.pt2"):
        (tmp_path / program).touch()
        cli("evaluate", tmp_path / program).refused(f"{program} is an exported program")
        cli("inspect", tmp_path / program, "resnet10t").refused(f"{program} is an exported program")
    shutil.copytree(data / "val" / "red", data / "val" / "violet")
    cli("evaluate", teacher_file, "--data", data).refused("3 classes", "4 classes")


def test_hub_weights_that_cannot_be_fetched_are_named(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route to the hub\nand more")

    monkeypatch.setattr(timm, "create_model", offline)
    run("--teacher", "vit_tiny_patch16_224").refused("hub weights of vit_tiny_patch16_224", "local safetensors file")


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("vit_tny", "vit_tiny_patch16_224"), ("resnt50", "resnet50"), ("mobilnetv1_100", "mobilenetv1_100")],
)
def test_a_misspelt_model_is_told_the_one_that_begins_like_it(cli: Cli, typo: str, meant: str) -> None:
    cli("inspect", "vit_tiny_patch16_224", typo).refused(typo, f"did you mean '{meant}'?")


def test_a_run_that_cannot_start_leaves_no_folder(cli: Cli, data: Path, teacher_file: Path, tmp_path: Path) -> None:
    new, mine = tmp_path / "new" / "deep", tmp_path / "mine"
    (mine / "kept").mkdir(parents=True)
    base = ("distill", "--method", "none", "--student", "vit_tny", "--batch", "6", "--data", data)
    for output in (new, mine):
        cli(*base, "--output", output).refused("vit_tny")
    assert not new.parent.exists()
    assert (mine / "kept").is_dir()  # the existing folder is kept
    cli(*base, "--student", "resnet18", "--output", new).refused("vit_tny")
    assert not new.parent.exists()
    cli("adapt", teacher_file, "--data", tmp_path / "nowhere", "--output", new).refused("nowhere")
    assert not new.parent.exists()


def test_adapt_refuses_a_resolution_that_the_teacher_could_not_be_used_at(cli: Cli, data: Path, tmp_path: Path) -> None:
    command = ("adapt", "vit_tiny_patch16_224", "--data", data, "--output", tmp_path / "teacher", "--resolution", "40")
    weights = tmp_path / "vit.safetensors"
    save_file(timm.create_model("vit_tiny_patch16_224", img_size=32).state_dict(), weights)
    cli(*command, "--teacher-weights", weights).refused("resolution", "patches of 16 pixels", "use 32 or 48")
    assert not (tmp_path / "teacher").exists()
