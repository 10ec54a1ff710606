"""Small data for detection and segmentation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64
COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))


def write_coco(root: Path) -> Path:
    """Write 4 training and 2 validation images with a bright or dark square each; one training image has none."""
    (root / "annotations").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for split, count in (("train2017", 4), ("val2017", 2)):
        (root / split).mkdir()
        images, annotations = [], []
        for index in range(count):
            pixels = generator.integers(90, 160, (SIDE, SIDE + 8 * index, 3), dtype=np.uint8)
            x, y, side = (int(number) for number in generator.integers((0, 0, 20), (30, 30, 34)))
            bright = index % 2
            if index != 2:
                pixels[y : y + side, x : x + side] = 250 * bright
                corners = [x, y, x + side, y, x + side, y + side, x, y + side]
                annotations.append(
                    {
                        "id": index,
                        "image_id": 10 + index,
                        "category_id": (3, 8)[bright],
                        "bbox": [x, y, side, side],
                        "area": side**2,
                        "iscrowd": 0,
                        "segmentation": [corners],
                    }
                )
            Image.fromarray(pixels).save(root / split / f"{index}.png")
            size = {"width": pixels.shape[1], "height": SIDE}
            images.append({"id": 10 + index, "file_name": f"{index}.png"} | size)
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 3, "name": "dark"}, {"id": 8, "name": "bright"}],
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def write_scenes(folder: Path) -> Path:
    """Write 8 training and 3 validation images of 48x40 with three classes, in ADE20K's layout."""
    generator = np.random.default_rng(0)
    for split, count in (("training", 8), ("validation", 3)):
        for number in range(count):
            _write_scene(folder, split, number, generator)
    return folder


def _write_scene(data: Path, split: str, number: int, generator: np.random.Generator) -> None:
    """Write three stripes in random order, each in its class's colour; the top four rows have no label."""
    order = generator.permutation(3)
    numbers = np.repeat(order, 16)[None].repeat(40, 0).astype(np.uint8)
    pixels = np.array(COLOURS, np.uint8)[numbers] + generator.integers(0, 30, (40, 48, 3), dtype=np.uint8)
    labels = numbers + 1
    labels[:4] = 0
    for kind, array, suffix in (("images", pixels, "jpg"), ("annotations", labels, "png")):
        (data / kind / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(data / kind / split / f"{number}.{suffix}")
