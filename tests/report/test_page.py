from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from conftest import HOSTILE, TINY_KEYS, Cli, newest_checkpoint
from rich.console import Console

from scalekd.recipes import load
from scalekd.report import measure_figures, read_runs, render_markdown, render_page
from scalekd.tasks.distill import distill_students


class Read(HTMLParser):
    """Collects the tags, addresses and text of a page; raises for a closing tag without an opening one."""

    VOID = ("meta", "link", "img", "br", "wbr")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scripts: list[dict[str, str | None]] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.scripts += [found] if tag == "script" else []
        self.addresses += [found[key] or "" for key in ("src", "href", "xlink:href", "action", "data") if key in found]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if "script" not in self.open and "style" not in self.open else ""


@pytest.fixture
def copied(runs: Path, tmp_path: Path) -> Path:
    """A copy of the runs, which a test may change."""
    return Path(shutil.copytree(runs, tmp_path / "copied"))


def page_of(*folders: Path, images: int = 6) -> str:
    records = read_runs(folders)
    return render_page(records, [measure_figures(record, images) for record in records])


@pytest.fixture(scope="module")
def page(runs: Path) -> str:
    return page_of(runs / "scalekd")


def test_a_finished_run_has_every_figure(page: str) -> None:
    read = Read(page)
    for words in (
        "The run is finished: 2 of 2 epochs, 24 images viewed", "Loss, term by term", "Teacher-student cosine",
        "Spectrum of the teacher's features", "Distances of the proxies (TPP)", "CAP_last, frequency",
        "Rows: the image's class", "operations per image", "student.safetensors (SHA-256)", "scalekd distill --recipe",
        "alpha_frequency: 0.06", "teacher weights",
    ):  # fmt: skip
        assert words in read.text, words
    assert "Left out" not in read.text


def test_the_page_loads_nothing_and_runs_one_script(page: str) -> None:
    read = Read(page)
    assert all(re.match("data:|#", address) for address in read.addresses)
    assert not re.search(r"url\(|@import|//[a-z]+\.[a-z]", page.replace("http://www.w3.org", ""))
    assert [script.get("type") for script in read.scripts].count(None) == 1
    assert "default-src &#39;none&#39;" in page
    assert "on" not in {name for tag in re.findall(r"<\w+ ([^>]*)>", page) for name in re.findall(r"\b(on)\w+=", tag)}
    assert len(page) < 1_500_000


def test_a_class_called_like_a_script_is_text(page: str) -> None:
    assert HOSTILE not in page
    assert HOSTILE in Read(page).text


def test_an_unfinished_run_is_told_for_one(copied: Path) -> None:
    run = copied / "scalekd"
    (run / "result.json").unlink()
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"step": 5, "train/lo')  # being written
    text = Read(page_of(run)).text
    assert "The run is not finished: 2 of 2 epochs" in text
    assert "1 line(s) of metrics.jsonl cannot be read" in text
    assert "images measured for this report the teacher classifies" in text
    assert "scalekd distill --resume" in text


@pytest.mark.parametrize(("teacher", "sentence"), [
    (90.0, "That is 40.00 points less than the teacher's 90.00%."),
    (50.0, "That is as many as the teacher's 50.00%."),
    (45.5, "That is 4.50 points more than the teacher's 45.50%."),
])  # fmt: skip
def test_the_student_is_compared_with_its_teacher(copied: Path, teacher: float, sentence: str) -> None:
    run = copied / "scalekd"
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"teacher_top1": teacher}))
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"step": 6, "val/top1": 50.0}\n')
    assert sentence in Read(page_of(run, images=0)).text


def test_a_run_that_has_just_begun(copied: Path) -> None:
    run = copied / "scalekd"
    for name in ("result.json", "metrics.jsonl", "student.safetensors"):
        (run / name).unlink()
    shutil.rmtree(run / "checkpoints")
    text = Read(page_of(run)).text
    assert "nothing is logged yet" in text
    assert "the run has not validated once" in text
    assert "Distances and attention are left out" in text
    assert "Spectrum of the teacher's features" in text


def test_a_run_without_teacher(runs: Path) -> None:
    text = Read(page_of(runs / "none")).text
    assert "resnet18 learned alone, from the labels of 12 images of 3 classes" in text
    assert "The method none has no teacher" in text
    assert "Spectrum" not in text
    assert "Rows: the image's class" in text


def test_data_teacher_and_checkpoint_that_are_gone_are_said_to_be(copied: Path, tmp_path: Path) -> None:
    run = copied / "scalekd"
    keys = yaml.safe_load((run / "recipe.yaml").read_text())
    newest_checkpoint(run).write_bytes(b"no checkpoint")
    keys["data"] = str(tmp_path / "gone")
    (run / "recipe.yaml").write_text(yaml.safe_dump(keys))
    text = Read(page_of(run)).text
    assert "Figures that need images are left out: data:" in text
    assert "cannot be read" in text
    assert "Loss, term by term" in text
    keys["teacher"] = str(tmp_path / "gone.safetensors")
    (run / "recipe.yaml").write_text(yaml.safe_dump(keys | {"key_of_another_revision": 1}))
    text = Read(page_of(run)).text
    assert "Figures of the teacher are left out: " in text
    assert "key_of_another_revision" in text


def test_a_report_changes_nothing_in_a_run(copied: Path) -> None:
    run = copied / "scalekd"
    newest_checkpoint(run).write_bytes(b"being written")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    page_of(run)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_run_without_labels_has_the_teachers_figures(copied: Path, listed: Path) -> None:
    run = copied / "scalekd"
    keys = yaml.safe_load((run / "recipe.yaml").read_text())
    keys |= {"labels": "none", "data": str(listed / "images"), "val_split": "none"}
    (run / "recipe.yaml").write_text(yaml.safe_dump(keys))
    text = Read(page_of(run)).text
    assert "the images have no labels or the student no head" in text
    assert "Distances of the proxies" in text
    assert "Rows: the image's class" not in text


def test_a_groups_folder_stands_for_its_runs(listed: Path, teacher_file: Path, tmp_path: Path) -> None:
    keys = TINY_KEYS | {"data": str(listed), "teacher": str(teacher_file), "logit_weight": 0, "epochs": 1}
    recipe = load(None, keys | {"student_args": {}})
    distill_students(recipe, ("test_resnet", "test_vit"), tmp_path / "[/group]", console=Console(quiet=True))
    records = read_runs([tmp_path / "[/group]"])
    assert [record.name for record in records] == ["test_resnet", "test_vit"]
    figures = [measure_figures(record, 2) for record in records]
    assert [found.step for found in figures] == [2, 2]
    assert all(found.distances and found.attended and not found.notes for found in figures)


def test_several_runs_stand_side_by_side(runs: Path) -> None:
    page = page_of(runs / "none", runs / "scalekd", images=0)
    text = Read(page).text
    assert "2 runs side by side" in text
    charts = [json.loads(script) for script in re.findall(r'<script type="application/json">(.*?)</script>', page)]
    assert ["none", "scalekd"] in [[series["name"] for series in chart["series"]] for chart in charts]
    assert text.count("none were asked for (--images 0)") == 2


def test_figures_do_not_depend_on_the_images_order_but_on_their_number(runs: Path) -> None:
    (record,) = read_runs([runs / "scalekd"])
    few, all_of_them = measure_figures(record, 3), measure_figures(record, 100)
    assert (few.images, all_of_them.images, all_of_them.of) == (3, 6, 6)
    assert [answer.image for answer in few.given] == [0, 2, 4]
    assert few.given == [answer for answer in all_of_them.given if answer.image in (0, 2, 4)]


def test_the_command_writes_beside_the_run_or_prints_markdown(cli: Cli, copied: Path, tmp_path: Path) -> None:
    outcome = cli("report", copied / "none", "--images", "2")
    assert outcome.code == 0, outcome.err
    assert Read((copied / "none" / "report.html").read_text()).text
    outcome = cli("report", copied / "none", copied / "scalekd", "--images", "0", "--markdown")
    assert outcome.out.startswith("| run | state | method |")
    assert "| scalekd | finished | scalekd | teacher.safetensors |" in outcome.out
    assert str(tmp_path) not in outcome.out
    cli("report", copied / "none", copied / "scalekd").refused("output", "--output FILE.html")
    cli("report", tmp_path).refused(str(tmp_path), "no run")
    cli("report", copied / "none", copied / "none").refused("given twice")
    cli("report", copied / "none", "--data", tmp_path / "nowhere", "--output", tmp_path / "page.html")
    assert "nowhere" in Read((tmp_path / "page.html").read_text()).text


def test_markdown_cannot_break_out_of_its_table(copied: Path) -> None:
    odd = copied / "a|b<i>"
    (copied / "none").rename(odd)
    (record,) = read_runs([odd])
    assert r"| a\|b&lt;i> |" in render_markdown([record], [measure_figures(record, 0)])


def test_a_run_of_transfer_is_refused(copied: Path, cli: Cli) -> None:
    (copied / "none" / "recipe.yaml").write_text("backbone: runs/x\n")
    cli("report", copied / "none").refused("run of transfer")
