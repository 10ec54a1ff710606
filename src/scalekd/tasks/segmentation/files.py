"""Lists the images of a split with their label images, and checks that they fit together."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from scalekd.data.decoding import UnreadableImageError, open_image
from scalekd.data.endings import is_hidden, is_image
from scalekd.errors import UserError
from scalekd.tasks.segmentation.layouts import hint
from scalekd.tasks.segmentation.schema import Segmentation
from scalekd.tasks.segmentation.values import check_header


@dataclass(frozen=True)
class Pairs:
    """The images of one split and their label images.

    Attributes:
        split: The split's name.
        root: Folder of the images.
        images: Paths of the images.
        labels: Path of each image's label image.
    """

    split: str
    root: Path
    images: tuple[Path, ...]
    labels: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def fingerprint(self) -> str:
        """The number of images and a digest of their names and the sizes of all files."""
        digest = hashlib.sha256()
        for image, label in zip(self.images, self.labels, strict=True):
            sizes = f"{image.stat().st_size} {label.stat().st_size}"
            digest.update(f"{image.relative_to(self.root)}\0{sizes}\n".encode(errors="surrogateescape"))
        return f"{len(self)} images, {digest.hexdigest()[:16]}"


def folders_of(recipe: Segmentation, split: str) -> tuple[Path, Path]:
    """Return the folders of a split's images and of its label images.

    Raises:
        UserError: If the recipe names no data.
    """
    if recipe.data is None:
        raise UserError("data: none is given; pass --data (a folder with images/training/, annotations/training/, ...)")
    image_root, label_root = (
        recipe.data / pattern.replace("{split}", split) for pattern in (recipe.image_folder, recipe.label_folder)
    )
    return image_root, label_root


def read_pairs(recipe: Segmentation, split: str) -> Pairs:
    """List a split's images and label images, and check the headers of all files.

    Raises:
        UserError: If a folder is missing or empty, an image or label image has no partner, or their sizes differ.
    """
    image_root, label_root = folders_of(recipe, split)
    assert recipe.data is not None  # otherwise `folders_of` raises
    images, labels = _folder(recipe, image_root), _folder(recipe, label_root)
    if recipe.label_suffix:  # images and label images may be in the same folder
        images = {name: path for name, path in images.items() if not name.endswith(recipe.label_suffix)}
        labels = {
            name.removesuffix(recipe.label_suffix): path
            for name, path in labels.items()
            if name.endswith(recipe.label_suffix)
        }
    elif image_root == label_root:
        raise UserError(
            f"data: {image_root} is both image_folder and label_folder; set label_suffix to the suffix of the label "
            f"images' names, as in --label-suffix _mask{hint(recipe.data)}"
        )
    if recipe.split_list is not None:
        names = _listed(recipe.data / recipe.split_list.replace("{split}", split))
        images, labels = _only(images, names, image_root), _only(labels, names, label_root)
    _check_partners(recipe, (images, image_root), (labels, label_root))
    pairs = Pairs(split, image_root, tuple(images.values()), tuple(labels[name] for name in images))
    for image, label in zip(pairs.images, pairs.labels, strict=True):
        _check(image, label)
    return pairs


def _folder(recipe: Segmentation, root: Path) -> dict[str, Path]:
    """List the images in a folder and its subfolders, by their relative path without extension."""
    assert recipe.data is not None
    if not root.is_dir():
        message = f"data: no such folder: {root}; set image_folder and label_folder to the folders of the split"
        raise UserError(f"{message}{hint(recipe.data) if recipe.data.is_dir() else ''}")
    files = [path for path in root.rglob("*") if path.is_file() and not _hidden(path.relative_to(root))]
    found: dict[str, Path] = {}
    for path in sorted(path for path in files if is_image(path.name)):
        name = str(path.relative_to(root).with_suffix(""))
        if name in found:
            raise UserError(f"data: {found[name]} and {path.name} differ in their ending only; remove one of them")
        found[name] = path
    if not found:
        endings = Counter(path.suffix or "none" for path in files).most_common(3)
        other = f"; its files end in {', '.join(f'{ending} ({count})' for ending, count in endings)}" if files else ""
        raise UserError(f"data: no images in {root}{other}{hint(recipe.data)}")
    return found


def _hidden(path: Path) -> bool:
    return any(is_hidden(part) for part in path.parts)


def _listed(path: Path) -> dict[str, None]:
    """Read the names in a split's list, in their order."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"split_list: {path} cannot be read: {error}") from None
    names = dict.fromkeys(line.strip() for line in lines if line.strip())
    if not names:
        raise UserError(f"split_list: {path} names no images")
    return names


def _only(files: dict[str, Path], names: dict[str, None], root: Path) -> dict[str, Path]:
    missing = [name for name in names if name not in files]
    if missing:
        more = f" (nor {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(
            f"split_list: names {missing[0]!r}, which is not in {root}{more}; write one name without ending per line"
        )
    return {name: files[name] for name in names}


def _check_partners(
    recipe: Segmentation, images: tuple[dict[str, Path], Path], labels: tuple[dict[str, Path], Path]
) -> None:
    """Check that every image has a label image and vice versa.

    Raises:
        UserError: If one has no partner; suggests `label_suffix` if that would pair all of them.
    """
    for (have, _), (lack, where) in ((images, labels), (labels, images)):
        missing = sorted(have.keys() - lack.keys())
        if not missing:
            continue
        more = f" (nor have {len(missing) - 1} more)" if len(missing) > 1 else ""
        suffixes = {name.removeprefix(missing[0]) for name in lack if name.startswith(missing[0])}
        suffix = next(
            (s for s in suffixes if not recipe.label_suffix and all(name + s in lack for name in missing)), ""
        )
        if suffix:
            fix = f"if its partner is {lack[missing[0] + suffix].name}, pass --label-suffix {suffix}"
        else:
            example = f" (files there have names like {next(iter(lack.values())).name})" if lack else ""
            fix = f"add it{example}, or remove the file"
        raise UserError(f"data: {have[missing[0]]} has no partner in {where}{more}; {fix}")


def _check(image: Path, label: Path) -> None:
    """Check the header of a label image, and that it has the size of its image.

    Raises:
        UserError: If it cannot be a label image, or the sizes differ.
    """
    try:
        with open_image(lambda: str(image)) as pixels, open_image(lambda: str(label)) as numbers:
            check_header(label, numbers.stored)
            size, other = pixels.size, numbers.size
    except UnreadableImageError:
        return  # reported when it is read
    if size != other:
        raise UserError(
            f"data: label image {label} is {other[0]}x{other[1]} pixels, but {image} is {size[0]}x{size[1]}; resize "
            "the label image without blending its values (nearest neighbour), or fix the pair"
        )
