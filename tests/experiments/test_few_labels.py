"""The study of few labels: its rows are recipes of equal time, and only the labels that a row may know are there."""

from __future__ import annotations

import json
from pathlib import Path

import few_labels
import pytest
from conftest import write_images
from few_labels import FewLabels, hide_labels
from few_labels_grid import IMAGES, LABELS, LONG, METHODS, RESULTS, SHORT, LabelRow, grid, label_row

from scalekd.recipes import load


class Recorded(FewLabels):
    """A study whose commands are noted instead of run; its teacher calls every image green."""

    def __init__(self, folder: Path) -> None:
        weights, initial, student = (Path(f"{name}.safetensors") for name in ("WEIGHTS", "INITIAL", "STUDENT"))
        places = folder / "data", weights, folder / "runs", folder / "results"
        super().__init__(*places, 1, initial=initial, student=student)
        self.commands: list[tuple[str, ...]] = []
        self.results.mkdir()

    def scalekd(self, *arguments: str, log: str) -> str:
        self.commands.append(arguments)
        if arguments[0] == "adapt":
            output = Path(arguments[arguments.index("--output") + 1])
            output.mkdir(parents=True)
            (output / "teacher.safetensors").touch()
        if arguments[0] == "predict":
            images = sorted(Path(arguments[2]).iterdir())
            return "\n".join(json.dumps({"image": str(image), "predictions": [{"class": "green"}]}) for image in images)
        return "{}"


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    write_images(tmp_path / "data" / "train", 40)
    write_images(tmp_path / "data" / "val", 4)
    for split in ("train", "val"):  # as in Imagenette, an image has one name in all folders
        for file in (tmp_path / "data" / split).glob("*/*"):
            file.rename(file.with_name(f"{file.parent.name}-{file.name}"))
    return Recorded(tmp_path)


def test_rows_have_names_of_their_own_and_are_recipes(recorded: Recorded) -> None:
    rows = list(grid())
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        recipe = load("imagenette", recorded.keys(row))
        assert recipe.lean == (row.way in ("lean", "falling"))
        assert (row.teacher is None) == (row.way == "none")


@pytest.mark.parametrize("row", list(grid()), ids=lambda row: row.name)
def test_rows_take_the_same_time(row: LabelRow) -> None:
    images = IMAGES if row.way != "none" else 10 * row.labels
    spent = row.keys["epochs"] * images * METHODS[row.way][1]
    budget = IMAGES * (LONG if "-long" in row.name else SHORT)
    assert spent == pytest.approx(budget, rel=0.05)


def test_fewer_labels_are_a_part_of_more_and_no_image_is_lost(recorded: Recorded, tmp_path: Path) -> None:
    folders = [hide_labels(recorded.data, labels, tmp_path / "hidden") for labels in (5, 20, 40)]
    named = [{file.name for file in folder.glob("train/*/*")} for folder in folders]
    assert named[0] < named[1] < named[2]
    for folder, labels in zip(folders, (5, 20, 40), strict=True):
        assert [len(list(kind.iterdir())) for kind in (folder / "train").iterdir()] == [labels] * 3
        assert len(list(folder.glob("train/*/*"))) + len(list(folder.glob("unlabelled/*"))) == 120
    assert not (folders[2] / "unlabelled").exists()


def test_the_teacher_is_fitted_once_to_the_labelled_images(recorded: Recorded) -> None:
    for way in ("kd", "lean"):
        assert "--cache" in recorded.teacher(label_row(way, 10))
    (adapt,) = recorded.commands
    assert (adapt[0], adapt[adapt.index("--mode") + 1]) == ("adapt", "probe")
    assert Path(adapt[adapt.index("--data") + 1]).name == "30-labels10"
    assert json.loads((recorded.results / "teacher-10.json").read_text())["mode"] == "probe"
    assert recorded.teacher(label_row("kd", LABELS[-1]))[:2] == ["--teacher-weights", "WEIGHTS.safetensors"]
    assert recorded.teacher(label_row("none", 10)) == recorded.teacher(label_row("pseudo", 10)) == []


def test_long_rows_are_measured_at_each_quarter_and_only_the_pretrained_student_gets_weights(
    recorded: Recorded,
) -> None:
    assert recorded.keys(label_row("none", LABELS[-1], budget=LONG))["validate_every"] == LONG / 4
    short = label_row("none", LABELS[-1])
    assert recorded.keys(short)["validate_every"] == SHORT
    assert "--student-weights" not in recorded.settings(short, [])
    settings = recorded.settings(label_row("none", LABELS[-1], family="lite0"), [])
    assert settings[settings.index("--student-weights") + 1] == "STUDENT.safetensors"


def test_pseudo_labels_are_the_teachers_answers(recorded: Recorded) -> None:
    made = recorded.images(label_row("pseudo", 10))
    kinds = {kind.name: len(list(kind.iterdir())) for kind in (made / "train").iterdir()}
    assert kinds == {"blue": 10, "green": 10 + 3 * 2, "red": 10}, "12 images a class are 30%; 10 have a label"
    assert not (made / "unlabelled").exists()


def test_the_page_has_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "results.md").read_text("utf-8")
    assert few_labels.table(RESULTS) in page


def test_the_table_has_a_column_for_each_number_of_labels(tmp_path: Path) -> None:
    for name, top1 in {"cnn-10-kd-s0": 40.0, "cnn-10-kd-s1": 42.0, "cnn-100-none-s0": 50.0}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"result": {"top1": top1}}))
    assert few_labels.table(tmp_path).splitlines()[2:] == [
        "| MobileNet-V1 | short | labels only | - | 50.0 | - |",
        "| MobileNet-V1 | short | KD | 41.0 ± 1.4 (2 seeds) | - | - |",
    ]
