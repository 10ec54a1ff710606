"""The study: its rows are recipes, they run in an order that works, and the page says what the files say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import study_tables
from conftest import write_images
from study import Queue
from study_grid import RESULTS, STRONG, Row, grid
from study_run import Study, share_of

from scalekd.errors import UserError
from scalekd.recipes import load


class Recorded(Study):
    """A study whose commands are noted instead of run."""

    def __init__(self, folder: Path, data: Path) -> None:
        super().__init__(data, Path("WEIGHTS.safetensors"), folder / "runs", folder / "results", threads=1)
        self.commands: list[tuple[str, ...]] = []
        self.results.mkdir()

    def scalekd(self, *arguments: str, log: str) -> str:
        self.commands.append(arguments)
        if arguments[0] == "distill":
            output = Path(arguments[arguments.index("--output") + 1])
            output.mkdir(parents=True, exist_ok=True)
            (output / "environment.json").write_text("{}")
            (output / "metrics.jsonl").write_text('{"step": 1, "cosine/student_spatial": 0.5}\n{"step": 2}\n')
        return json.dumps({"models": [{"linear": 50.0}]} if arguments[0] == "evaluate" else {"top1": 40.0})


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    write_images(tmp_path / "data" / "train", 20)
    write_images(tmp_path / "data" / "val", 4)
    return Recorded(tmp_path, tmp_path / "data")


@pytest.mark.parametrize("row", grid(), ids=lambda row: row.name)
def test_a_row_is_a_recipe(row: Row, recorded: Recorded) -> None:
    recipe = load("imagenette", recorded.keys(row))
    assert (recipe.batch, recipe.warmup_epochs) == (32, -(-recipe.epochs // 4) % recipe.epochs)
    assert (row.teacher is None) == (recipe.method == "none")


def test_equal_budgets_view_about_as_many_images() -> None:
    viewed = [row.share * row.keys["epochs"] for row in grid() if "-share" in row.name or row.name == "cnn-none-s0"]
    assert max(viewed) <= 1.2 * min(viewed)


def test_a_share_is_a_part_of_a_larger_one_and_of_each_class(recorded: Recorded, tmp_path: Path) -> None:
    small, large = (share_of(recorded.data, percent, tmp_path / "shares") for percent in (30, 60))
    names = [{str(file.relative_to(made)) for file in made.glob("train/*/*")} for made in (small, large)]
    assert names[0] < names[1]
    assert len(names[0]) == 0.3 * len(list(recorded.data.glob("train/*/*")))
    assert len({name.split("/")[1] for name in names[0]}) == len(list(recorded.data.glob("train/*")))
    assert len(list(small.glob("val/*/*"))) == len(list(recorded.data.glob("val/*/*")))
    with pytest.raises(UserError, match="no folders train and val"):
        share_of(tmp_path / "none", 30, tmp_path / "shares")


def test_a_row_waits_for_its_teacher_and_a_failed_one_keeps_only_its_pupils(recorded: Recorded) -> None:
    teacher, pupil = Row("a-teacher", {"epochs": 1}), Row("a-pupil", {"epochs": 1}, teacher="a-teacher")
    for fails in (False, True):
        queue = Queue([pupil, teacher], recorded)
        first = queue.take()
        assert first == teacher
        queue.give_back(first, done=not fails)
        assert queue.take() == (None if fails else pupil)


def test_a_result_is_kept_until_its_settings_change(recorded: Recorded) -> None:
    row = next(row for row in grid() if row.name == "cnn-scalekd-s0")
    assert not recorded.done(row)
    recorded.run(row)
    assert recorded.done(row)
    assert [command[0] for command in recorded.commands] == ["cache", "distill", "evaluate"]
    assert "--cache" in recorded.commands[1]
    result = json.loads((recorded.results / f"{row.name}.json").read_text())
    assert result["probe"] == 50
    assert result["cosines"] == {"cosine/student_spatial": 0.5}
    assert str(recorded.runs) not in result["command"]
    assert not recorded.done(Row(row.name, row.keys | {"lr": 1.0}, teacher=STRONG, probe=True))
    assert not recorded.done(Row(row.name, row.keys, teacher=STRONG))
    assert not recorded.done(replace(row, share=row.share + 1))
    assert not recorded.done(replace(row, teacher="another"))


def record(top1: float, **more: Any) -> dict[str, Any]:
    return {"result": {"top1": top1, "samples": 100, "teacher_top1": 97.0}, "probe": None, "name": "row-s0"} | more


def test_tables_say_mean_spread_and_seeds(tmp_path: Path) -> None:
    for name, top1 in {"cnn-none-s0": 40.0, "cnn-none-s1": 42.0, "cnn-scalekd-s0": 50.0}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(record(top1)))
    records = study_tables.Records(tmp_path)
    page = study_tables.filled("<!-- table: families -->old<!-- end -->", records)
    assert "| alone | 41.0 ± 1.4 (2 seeds) | not run yet | not run yet |" in page
    assert "| ScaleKD | 50.0 | not run yet | not run yet |" in page
    assert study_tables.filled(page, records) == page


def test_images_that_training_alone_would_need_are_read_off_its_own_curve(tmp_path: Path) -> None:
    for name, samples, top1 in (
        ("cnn-none", 100, 40.0), ("cnn-none-x2", 200, 50.0), ("cnn-none-x4", 400, 60.0),
        ("cnn-scalekd", 100, 55.0), ("cnn-scalekd-x2", 200, 60.1), ("cnn-scalekd-x4", 400, 39.0),
    ):  # fmt: skip
        (tmp_path / f"{name}-s0.json").write_text(
            json.dumps(record(0) | {"result": {"top1": top1, "samples": samples}})
        )
    records = study_tables.Records(tmp_path)
    needed = [study_tables.saved(records, label) for label in ("", "-x2", "-x4", "-x8")]
    assert needed == ["2.8 x", "more than was tried", "fewer than was tried", "-"]  # 2 ** 1.5


def test_costs_and_lengths_stand_in_their_rows(tmp_path: Path) -> None:
    for name, samples, top1 in (("cnn-none", 100, 40.0), ("cnn-scalekd-x2", 200, 55.0)):
        (tmp_path / f"{name}-s0.json").write_text(
            json.dumps(record(0) | {"result": {"top1": top1, "samples": samples}})
        )
    for file, slower in (("cost", 3.0), ("cost-amx", 2.0)):
        ratios = {"none": 1.0, "scalekd": slower, "scalekd, cached": slower - 1}
        content = {
            "time_ratio": {name: {"median": ratio, "min": ratio, "max": ratio} for name, ratio in ratios.items()},
            "flops": {"none": {"total": 10, "teacher": 0}, "scalekd": {"total": 60, "teacher": 20}},
        }
        (tmp_path / f"{file}.json").write_text(json.dumps({"families": {"cnn": content}}))
    records = study_tables.Records(tmp_path)
    costs = study_tables.costs(records).splitlines()[2:]
    assert costs == [
        "| ScaleKD | 3.00 (3.00 to 3.00) | 6.0 | - | - | - | - |",
        "| ScaleKD, from the cache | 2.00 (2.00 to 2.00) | 4.0 | - | - | - | - |",
        "| ScaleKD, with AMX | 2.00 (2.00 to 2.00) | 6.0 | - | - | - | - |",
        "| ScaleKD, from the cache, with AMX | 1.00 (1.00 to 1.00) | 4.0 | - | - | - | - |",
    ]
    assert study_tables.equal_cost(records).splitlines()[2:] == [
        "| CNN (MobileNet-V1) | alone | 4 | 1.0 | 1.0 | 1.0 | 1.0 | 40.0 |",
        "| CNN (MobileNet-V1) | ScaleKD | 8 | 6.0 | 4.0 | 12.0 | 8.0 | 55.0 |",
    ]
    budget = study_tables.budgets(records).splitlines()[2]
    assert budget.startswith("| 4 | 100 | 40.0 | not run yet |")


@pytest.mark.parametrize("page", study_tables.PAGES, ids=lambda page: page.name)
def test_a_page_says_what_the_files_say(page: Path) -> None:
    text = page.read_text()
    assert "<!-- table: families -->" in text
    assert study_tables.filled(text, study_tables.Records(RESULTS)) == text


def test_every_result_is_of_a_row_as_it_is_today() -> None:
    now = Study(Path("data"), Path("weights"), Path("runs"), RESULTS, threads=1)
    rows = {row.name: row for row in grid()}
    names = [file.stem for file in RESULTS.glob("*.json") if not file.stem.startswith("cost")]
    assert [name for name in names if name not in rows or not now.done(rows[name])] == []
