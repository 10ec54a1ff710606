"""Which way to quantise a student to int8 keeps its accuracy in onnxruntime, OpenVINO and OpenCV, and at what speed?

Usage: python benchmarks/int8.py STUDENT.safetensors ... --data DATA --output FILE
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from command import Parser, check_output, positive, say
from measurement import describe_machine
from torch import Tensor

from scalekd.atomic import write_json
from scalekd.data import in_order, read_split
from scalekd.errors import UserError, first_line
from scalekd.exports.compare import Forward, time_ratio
from scalekd.exports.images import Images
from scalekd.exports.onnx import OnnxClassifier, export_onnx
from scalekd.exports.quantise import AFTER_CLIPS, CLIPS, INPUTS_ONLY, PRODUCTS, Way, choose_way, quantise
from scalekd.models import Classifier
from scalekd.recipes import load
from scalekd.tasks.distill.inputs import evaluation_images

WAYS: dict[str, Way] = {
    "inputs and outputs": Way(PRODUCTS, {}),
    "activations listed": Way((*PRODUCTS, *CLIPS), {}),
    "activations listed, float bias": AFTER_CLIPS,
    "inputs only": Way(PRODUCTS, {"OpTypesToExcludeOutputQuantization": PRODUCTS}),
    "inputs only, float bias": INPUTS_ONLY,
}


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("students", type=Path, nargs="+", help="weights files with a head for the classes of --data")
    parser.add_argument("--data", required=True, help="folder with train/<class>/ and val/<class>/")
    parser.add_argument("--images", type=positive, default=1000, help="validation images, evenly spread; default 1000")
    parser.add_argument("--calibration", type=positive, default=128, help="training images; default 128")
    parser.add_argument("--rounds", type=positive, default=15, help="alternate runs of one image each; default 15")
    parser.add_argument("--runtimes", nargs="+", choices=tuple(RUNTIMES), default=tuple(RUNTIMES))
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="also write the JSON to this file; what is in it stays"
    )
    return parser.parse_args()


def _openvino(file: Path) -> Forward:
    openvino = import_module("openvino")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(torch.get_num_threads())}
    compiled = openvino.Core().compile_model(str(file), "CPU", settings)
    return lambda images: torch.from_numpy(np.array(compiled(images.numpy())[0]))


def _opencv(file: Path) -> Forward:
    cv2 = import_module("cv2")
    cv2.setNumThreads(torch.get_num_threads())
    net = cv2.dnn.readNetFromONNX(str(file))

    def run(images: Tensor) -> Tensor:
        net.setInput(images.numpy())
        return torch.from_numpy(np.array(net.forward()))

    return run


RUNTIMES: dict[str, tuple[str, Callable[[Path], Forward]]] = {  # name: package, what opens a file
    "onnxruntime": ("onnxruntime", OnnxClassifier),
    "openvino": ("openvino", _openvino),
    "opencv": ("opencv-python-headless", _opencv),
}


def split_images(classifier: Classifier, data: str, name: str) -> Images:
    """Return a split's images as `scalekd export` reads them."""
    recipe = load(None, {"data": data, "workers": 0})
    split = in_order(read_split(data, name), classifier.classes)
    return Images(
        evaluation_images(recipe, split, resolution=classifier.resolution, crop_fraction=classifier.crop_fraction)
    )


class Validation(NamedTuple):
    """Images in batches, their labels `[N]`, and the float file's logits `[N, K]`."""

    batches: list[Tensor]
    labels: Tensor
    truth: Tensor


def logits(forward: Forward, batches: list[Tensor]) -> Tensor:
    """Return all logits `[N, K]`, computed in batches of 16."""
    return torch.cat([forward(batch) for batch in batches])


def compare(found: Tensor, validation: Validation) -> dict[str, float]:
    """Compare logits `[N, K]` of a quantised file with those of the float file."""
    truth, labels = validation.truth, validation.labels
    return {
        "top1": 100 * (found.argmax(1) == labels).float().mean().item(),
        "same_top1": 100 * (found.argmax(1) == truth.argmax(1)).float().mean().item(),
        "error": ((found - truth).square().mean().sqrt() / truth.std(0).mean()).item(),
    }


def measure_student(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure each way in each runtime for one student."""
    classifier = Classifier(path).eval()
    card = classifier.card()
    calibration = list(split_images(classifier, arguments.data, "train").sample(arguments.calibration))
    with TemporaryDirectory() as scratch:
        whole = Path(scratch) / "float32.onnx"
        export_onnx(classifier, whole, card)
        files = {"float32": whole}
        for number, (name, way) in enumerate(WAYS.items()):
            files[name] = Path(scratch) / f"{number}.onnx"
            quantise(whole, files[name], calibration, card, way=way)
        chosen = choose_way({node.op_type for node in onnx.load(whole).graph.node})
        validation = validate(classifier, whole, arguments)
        result: dict[str, Any] = {
            "student": classifier.name,
            "written": next(name for name, way in WAYS.items() if way == chosen),
            "images": len(validation.labels),
            "float32_top1": compare(validation.truth, validation)["top1"],
            "size_ratio": {way: file.stat().st_size / whole.stat().st_size for way, file in files.items()},
            "runtimes": {},
        }
        for name in arguments.runtimes:
            result["runtimes"][name] = measure_runtime(name, files, validation, arguments.rounds)
            say(f"{path.stem}: {name} done")
    return result


def validate(classifier: Classifier, whole: Path, arguments: argparse.Namespace) -> Validation:
    """Return the validation images, all of which must be readable, and the float file's logits."""
    images = split_images(classifier, arguments.data, "val")
    batches = list(images.sample(arguments.images))
    step = max(len(images.split) / arguments.images, 1)  # as `Images.sample` spreads them
    labels = [int(images.split.labels[int(number * step)]) for number in range(sum(map(len, batches)))]
    return Validation(batches, torch.tensor(labels), logits(OnnxClassifier(whole), batches))


def measure_runtime(name: str, files: dict[str, Path], validation: Validation, rounds: int) -> dict[str, Any]:
    """Measure each file in a runtime; a failure is recorded as text."""
    package, opener = RUNTIMES[name]
    try:
        result: dict[str, Any] = {"version": version(package), "ways": {}}
    except PackageNotFoundError:
        return {"skipped": f"{package} is not installed"}
    one = validation.batches[0][:1]
    for way, file in files.items():
        try:
            run = opener(file)
            found = compare(logits(run, validation.batches), validation)
            result["ways"][way] = found | {"time_ratio": time_ratio(opener(files["float32"]), run, one, rounds)}
        except Exception as error:  # runtimes raise kinds of their own
            result["ways"][way] = {"failed": first_line(error)}
    return result


def table(result: dict[str, Any]) -> str:
    """Format the result as a Markdown table: top-1, equal classes, error, time relative to the float file."""
    lines = [
        "| student (float32 top-1) | way | size | "
        + " | ".join(f"{name}: top-1 / same / error / time" for name in RUNTIMES)
        + " |",
        "|---" * (3 + len(RUNTIMES)) + "|",
    ]
    for student in result["students"].values():
        for way in WAYS:
            cells = [_cell(student["runtimes"].get(name, {}), way) for name in RUNTIMES]
            head = f"{student['student']} ({student['float32_top1']:.1f})"
            lines.append(f"| {head} | {way} | {student['size_ratio'][way]:.2f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(runtime: dict[str, Any], way: str) -> str:
    found = runtime.get("ways", {}).get(way)
    if found is None:
        return "-"
    if "failed" in found:
        return "cannot run it"
    return f"{found['top1']:.1f} / {found['same_top1']:.1f} / {found['error']:.3f} / {found['time_ratio']:.2f}"


def main() -> int:
    """Run the benchmark."""
    arguments = parse_arguments()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        check_output(arguments.output)
        result: dict[str, Any] = {
            "machine": describe_machine(torch.device("cpu")),
            "calibration_images": arguments.calibration,
            "students": {},
        }
        if arguments.output is not None and arguments.output.is_file():
            result["students"] = json.loads(arguments.output.read_text("utf-8"))["students"]
        for path in arguments.students:
            found = measure_student(path, arguments)
            earlier = result["students"].get(path.stem, {}).get("runtimes", {})
            result["students"][path.stem] = found | {"runtimes": earlier | found["runtimes"]}
            if arguments.output is not None:
                write_json(arguments.output, result)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    say(table(result))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
