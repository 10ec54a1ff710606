"""What a few labels and many images give a small model in equal time: one JSON file per run, resumable.

Usage: python experiments/few_labels.py --data IMAGENETTE --teacher-weights WEIGHTS --initial-weights WEIGHTS
           --student-weights WEIGHTS --runs FOLDER [--only NAME ...]
       python experiments/few_labels.py --table
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import threading
from fnmatch import fnmatch
from itertools import product
from pathlib import Path
from typing import Any

from few_labels_grid import FAMILIES, LABELS, METHODS, MODES, PRETRAINED, RESULTS, LabelRow, grid
from script import check_runs, run, runs_parser, say
from study import run_all
from study_grid import FITTED, Row
from study_run import Study, share_of

from scalekd.atomic import write_json

KINDS = {"": "short", "-strong": "short, strong teacher", "-long": "long"}
STUDENT_NAMES = {
    "cnn": "MobileNet-V1",
    "vit": "ViT-Ti/16",
    "mlp": "Mixer-S/16",
    "lite0": "EfficientNet-Lite0, pre-trained",
}
METHOD_NAMES = {
    "none": "labels only", "pseudo": "the teacher's answers as labels", "kd": "KD", "dist": "DIST", "lean": "`--lean`",
    "falling": "`--lean`, falling weights",
}  # fmt: skip

# The architecture of the teachers, before and after fitting.
TEACHER = ("vit_small_patch14_dinov2", "--teacher-args", "{global_pool: avg, fc_norm: false}")


def hide_labels(data: Path, labels: int, folder: Path) -> Path:
    """Create an image folder with links, in which `labels` images a class have a label and the others have none.

    Fewer labels are a subset of more.
    """
    made = folder / f"{data.name}-labels{labels}"
    if not made.is_dir():
        partial = made.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "unlabelled").mkdir(parents=True)
        for kind in sorted((data / "train").iterdir()):
            images = sorted(kind.iterdir())
            random.Random(1).shuffle(images)
            (partial / "train" / kind.name).mkdir(parents=True)
            for index, image in enumerate(images):
                known = partial / "train" / kind.name if index < labels else partial / "unlabelled"
                (known / image.name).symlink_to(image.resolve())
        (partial / "val").symlink_to((data / "val").resolve())
        if not any((partial / "unlabelled").iterdir()):
            (partial / "unlabelled").rmdir()
        partial.rename(made)
    return made


class FewLabels(Study):
    """Runs rows with few labels; fits their teachers first.

    Args:
        initial: Weights of the teacher's architecture before it saw any label.
        student: Weights of the pre-trained student.
    """

    def __init__(self, *args: Any, initial: Path, student: Path) -> None:
        super().__init__(*args)
        self.initial, self.student = initial, student
        self.places = {str(initial): "INITIAL", str(student): "STUDENT"}
        self.folders = threading.RLock()  # rows share their image folders

    def keys(self, row: Row) -> dict[str, Any]:
        """Return all recipe keys of a row except paths."""
        return super().keys(row) | {"validate_every": row.keys["validate_every"]}  # not only after the last epoch

    def settings(self, row: Row, teacher: list[str]) -> list[str]:
        """Return a row's flags without its output."""
        weights = ["--student-weights", str(self.student)] if row.family == PRETRAINED else []
        return [*super().settings(row, teacher), *weights]

    def images(self, row: Row) -> Path:
        """Return the image folder of a row; it is created if it is missing."""
        assert isinstance(row, LabelRow)
        with self.folders:
            hidden = self._hidden(row)
            return self._pseudo_labelled(row, hidden) if row.way == "pseudo" else hidden

    def teacher(self, row: Row) -> list[str]:
        """Return the flags of a row's teacher; it is fitted if it is missing."""
        assert isinstance(row, LabelRow)
        if row.way in ("none", "pseudo"):
            return []
        if row.teacher == FITTED:
            file = self._fitted(row.labels, self._hidden(row))
            return ["--teacher", str(file), "--teacher-args", "{}", "--cache", str(self.runs / "caches")]
        return ["--teacher-weights", str(self.weights), "--cache", str(self.runs / "caches")]

    def _hidden(self, row: LabelRow) -> Path:
        with self.folders:
            return hide_labels(share_of(self.data, row.share, self.runs / "data"), row.labels, self.runs / "data")

    def _fitted(self, labels: int, data: Path) -> Path:
        """Return the weights of the teacher that was fitted to the labelled images of a folder."""
        folder = self.runs / f"teacher-{labels}"
        file = folder / "teacher.safetensors"
        with self.filling:
            if not file.is_file():
                mode = MODES[labels]
                command = [
                    *("adapt", *TEACHER, "--teacher-weights", str(self.initial), "--data", str(data)),
                    *("--resolution", "112", "--crop-fraction", "1", "--workers", "0", "--mode", mode),
                ]
                found = self.scalekd(*command, "--output", str(folder), "--json", log=folder.name)
                content = {"labels": labels, "mode": mode, "command": self.public(command), "result": json.loads(found)}
                write_json(self.results / f"{folder.name}.json", content)
        return file

    def _pseudo_labelled(self, row: LabelRow, data: Path) -> Path:
        """Create an image folder in which images without a label have the class that the teacher predicts."""
        made = data.with_name(f"{data.name}-pseudo")
        if not made.is_dir():
            partial = made.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(data / "train", partial / "train", symlinks=True)
            (partial / "val").symlink_to((data / "val").resolve())
            teacher = self._fitted(row.labels, data)
            told = self.scalekd(
                *("predict", str(teacher), str(data / "unlabelled"), "--top", "1", "--json"), log=f"{row.name}.predict"
            )
            for line in map(json.loads, told.splitlines()):
                image = Path(line["image"])
                (partial / "train" / line["predictions"][0]["class"] / image.name).symlink_to(image.resolve())
            partial.rename(made)
        return made


def table(results: Path) -> str:
    """Format the accuracy of each student and method for each number of labels."""
    columns = [f"{labels} labels a class" for labels in LABELS[:-1]] + ["all labelled"]
    lines = [f"| student | run | method | {' | '.join(columns)} |", "|---" * 6 + "|"]
    for family, (suffix, kind), way in product(FAMILIES, KINDS.items(), METHODS):
        cells = [_cell(results, f"{family}-{labels}-{way}{suffix}") for labels in LABELS]
        if any(cell != "-" for cell in cells):
            lines.append(f"| {STUDENT_NAMES[family]} | {kind} | {METHOD_NAMES[way]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(results: Path, name: str) -> str:
    found = [json.loads(file.read_text("utf-8"))["result"]["top1"] for file in sorted(results.glob(f"{name}-s?.json"))]
    if len(found) < 2:
        return f"{found[0]:.1f}" if found else "-"
    return f"{statistics.mean(found):.1f} ± {statistics.stdev(found):.1f} ({len(found)} seeds)"


def main() -> int:
    parser = runs_parser(__doc__, RESULTS)
    parser.add_argument("--initial-weights", type=Path, help="weights of the teacher before it saw any label")
    parser.add_argument("--student-weights", type=Path, help="ImageNet weights of tf_efficientnet_lite0")
    parser.add_argument("--table", action="store_true", help="only print the table")
    args = parser.parse_args()
    if args.table:
        print(table(args.results))
        return 0
    check_runs(parser, args)
    for flag in ("initial_weights", "student_weights"):
        if getattr(args, flag) is None:
            parser.error(f"pass --{flag.replace('_', '-')}")
    rows = [row for row in grid() if any(fnmatch(row.name, pattern) for pattern in args.only)]
    say(f"{len(rows)} rows")
    places = args.data, args.teacher_weights, args.runs.resolve(), args.results
    study = FewLabels(*places, 1, initial=args.initial_weights, student=args.student_weights)
    return run_all(study, rows, args.jobs)


if __name__ == "__main__":
    run(main)
