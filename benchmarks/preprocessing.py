"""How much accuracy does a student lose if images are prepared in another way than it was evaluated with?

Usage: python benchmarks/preprocessing.py STUDENT.safetensors --data DATA --output FILE

OpenCV's ways are measured if opencv-python-headless is installed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from command import Parser, check_output, positive, say
from int8 import split_images
from measurement import describe_machine
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from scalekd.atomic import write_json
from scalekd.exports.onnx import OnnxClassifier, export_onnx
from scalekd.exports.pixels import take_pixels
from scalekd.models import Classifier
from scalekd.recipes import load
from scalekd.tasks.distill.inputs import whole_images

Pixels = NDArray[np.uint8]  # RGB, [h, w, 3]
Resize = Callable[[Pixels, int, int], Pixels]  # pixels, height, width


def centre_cut(image: Pixels, side: int, short: int, resize: Resize) -> Pixels:
    """Resize the short side of an image to `short` and take its centre, as docs/export.md says."""
    height, width = image.shape[:2]
    least = min(height, width)
    resized = resize(image, short * height // least, short * width // least)
    top, left = (round((length - side) / 2) for length in resized.shape[:2])
    return resized[top : top + side, left : left + side]


def by_pillow(kind: Image.Resampling) -> Resize:
    return lambda image, height, width: np.asarray(Image.fromarray(image).resize((width, height), kind))


def by_opencv(name: str) -> Resize:
    cv2 = import_module("cv2")
    return lambda image, height, width: cv2.resize(image, (width, height), interpolation=getattr(cv2, name))


def ways(side: int, short: int) -> dict[str, Callable[[Pixels], Pixels]]:
    """Return ways to prepare an image, by a description."""
    bicubic = by_pillow(Image.Resampling.BICUBIC)
    filters = {"PIL, bicubic": bicubic, "PIL, bilinear": by_pillow(Image.Resampling.BILINEAR)}
    if find_spec("cv2"):
        for name in ("INTER_AREA", "INTER_CUBIC", "INTER_LINEAR"):
            filters[f"OpenCV, {name}"] = by_opencv(name)
    found: dict[str, Callable[[Pixels], Pixels]] = {
        f"{name}, short side and centre cut": lambda image, resize=resize: centre_cut(image, side, short, resize)  # type: ignore[misc]
        for name, resize in filters.items()
    }
    found["PIL, bicubic, the whole image squeezed to a square"] = lambda image: bicubic(image, side, side)
    found["PIL, bicubic, short side to the model's, centre cut"] = lambda image: centre_cut(image, side, side, bicubic)
    found["PIL, bicubic, short side and centre cut, BGR"] = lambda image: centre_cut(image, side, short, bicubic)[
        ..., ::-1
    ]
    return found


def as_batch(image: Pixels) -> Tensor:
    """Return `[1, 3, h, w]` in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].float() / 255


def measure(path: Path, data: str, count: int) -> dict[str, Any]:
    """Measure each way on images that are spread evenly over the validation split."""
    classifier = Classifier(path).eval()
    images = split_images(classifier, data, "val")
    whole = whole_images(load(None, {"data": data, "workers": 0}), images.split)
    prepare = ways(classifier.resolution, round(classifier.resolution / classifier.crop_fraction))
    labels: list[int] = []
    logits: dict[str, list[Tensor]] = {name: [] for name in ("scalekd", "--input uint8", *prepare)}
    with TemporaryDirectory() as scratch, torch.no_grad():
        file = Path(scratch) / "pixels.onnx"
        export_onnx(classifier, file, classifier.card())
        take_pixels(file, classifier.card())
        runtime = OnnxClassifier(file)
        for index, ours, pixels in images.pairs(count, whole):
            labels.append(int(images.split.labels[index]))
            logits["scalekd"].append(classifier(ours))
            logits["--input uint8"].append(runtime(pixels))
            image = pixels[0].permute(1, 2, 0).numpy()
            for name, way in prepare.items():
                logits[name].append(classifier(as_batch(way(image))))
    truth, wanted = torch.tensor(labels), torch.cat(logits["scalekd"]).argmax(1)
    rows = {}
    for name, each in logits.items():
        found = torch.cat(each).argmax(1)
        rows[name] = {
            "top1": 100 * (found == truth).float().mean().item(),
            "same_top1": 100 * (found == wanted).float().mean().item(),
        }
    packages = ["pillow", "torch", "onnxruntime", *(["opencv-python-headless"] if find_spec("cv2") else [])]
    return {
        "student": classifier.name,
        "resolution": classifier.resolution,
        "crop_fraction": classifier.crop_fraction,
        "images": len(labels),
        "ways": rows,
        "packages": {name: version(name) for name in packages},
    }


def main() -> None:
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("student", type=Path, help="weights file with a head for the classes of --data")
    parser.add_argument("--data", required=True, help="folder with val/<class>/")
    parser.add_argument("--images", type=positive, default=1000, help="validation images, evenly spread; default 1000")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the JSON to this file")
    arguments = parser.parse_args()
    check_output(arguments.output)
    found = measure(arguments.student, arguments.data, arguments.images)
    for name, row in found["ways"].items():
        say(f"{name}: top1 {row['top1']:.1f}, {row['same_top1']:.1f}% as scalekd")
    found["machine"] = describe_machine(torch.device("cpu"))
    if arguments.output is not None:
        write_json(arguments.output, found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
