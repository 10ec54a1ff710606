"""Chooses the classes among the categories of annotation files, and checks that two files agree on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from scalekd.errors import UserError
from scalekd.tasks.detection.annotations import Content, Id


def learned_classes(file: Path, content: Content, also: Content, say: Callable[[str], object]) -> tuple[str, ...]:
    """Return the classes of a training file, in the order of their ids.

    A category without objects that is the parent of others is left out: for example Roboflow's first category, which
    has the project's name.

    Args:
        file: The training file; named in lines and errors.
        content: Its content.
        also: Content of the other split; a category that has objects there is kept.
        say: Called with a line for each category that is left out.

    Raises:
        UserError: If two categories have the same id, or two categories with objects have the same name.
    """
    names = _distinct(file, content)
    pairs = ((category.get("supercategory"), category["name"]) for category in content["categories"])
    parents = {parent for parent, own in pairs if isinstance(parent, str) and parent != own}
    used = {name for part in (content, also) for name in _used_names(part)}
    headings = {name for name in names.values() if name in parents and name not in used}
    for category in content["categories"]:
        if category["id"] not in names or category["name"] in headings:
            reason = "is the parent of others" if category["name"] in parents else "another one has the same name"
            named = f"{category['name']!r} (id {category['id']})"
            say(f"data      {file}: category {named} has no objects and {reason}: left out")
    return tuple(name for name in names.values() if name not in headings)


def labels_by_name(file: Path, content: Content, classes: Sequence[str], of: str) -> dict[Id, int]:
    """Map the categories of a file to labels by name, 1 for the first class.

    Categories that are not classes are allowed if they have no objects; they get no label.

    Args:
        file: The file; named in errors.
        content: Its content.
        classes: The classes, in order.
        of: Where the classes come from, for the error.

    Raises:
        UserError: If an object has another category.
    """
    names = _distinct(file, content)
    labels = {name: label for label, name in enumerate(classes, 1)}
    counts = Counter(names.get(a["category_id"]) for a in content["annotations"])
    unknown = [name for name in names.values() if name not in labels and counts[name]]
    if unknown:
        listed = ", ".join(f"{name!r} ({counts[name]} objects)" for name in unknown[:5])
        raise UserError(
            f"data: {file} has objects of other categories than {of}: {listed}; rename or remove them "
            f"(known are {', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''})"
        )
    return {category: labels[name] for category, name in names.items() if name in labels}


def report_absent_classes(file: Path, content: Content, classes: Sequence[str], say: Callable[[str], object]) -> None:
    """Report the classes that a validation file does not list; they cannot be measured."""
    listed = {category["name"] for category in content["categories"]}
    absent = [name for name in classes if name not in listed]
    if absent:
        more = ", ..." if len(absent) > 5 else ""
        count = f"{len(absent)} of {len(classes)} classes are not measured"
        say(f"data      {file} does not list {', '.join(absent[:5])}{more}: {count}")


def _distinct(file: Path, content: Content) -> dict[Id, str]:
    """Return category names by id, in the order of the ids.

    If several categories share a name, only the one with objects is kept.

    Raises:
        UserError: If two categories have the same id, or two categories with objects have the same name.
    """
    categories = content["categories"]
    if len({category["id"] for category in categories}) < len(categories):
        raise UserError(f"data: {file}: two categories have the same id; every category needs a unique name and id")
    used = {annotation["category_id"] for annotation in content["annotations"]}
    by_name: dict[str, list[Id]] = {}
    for category in sorted(categories, key=lambda category: _order(category["id"])):
        by_name.setdefault(category["name"], []).append(category["id"])
    names = {}
    for name, ids in by_name.items():
        chosen = [category for category in ids if category in used] or ids[-1:]
        if len(chosen) > 1:
            raise UserError(
                f"data: {file}: the categories {chosen[0]} and {chosen[1]} are both called {name!r}, and both have "
                "objects; every category needs a unique name and id"
            )
        names[chosen[0]] = name
    return dict(sorted(names.items(), key=lambda item: _order(item[0])))


def _used_names(content: Content) -> set[str]:
    used = {annotation["category_id"] for annotation in content["annotations"]}
    return {category["name"] for category in content["categories"] if category["id"] in used}


def _order(number: Id) -> tuple[bool, Id]:
    """Sort numeric ids before text ids, because the two cannot be compared."""
    return isinstance(number, str), number
