"""Suggests the flags that would map the values of label images to classes."""

from __future__ import annotations

from scalekd.tasks.segmentation.schema import IGNORED, Segmentation, colour_in_words


def suggest_flags(values: set[int], recipe: Segmentation, *, coloured: bool, surely: bool = True) -> str:
    """Suggest flags for values that do not fit the classes, as the end of an error or a warning.

    Args:
        values: All values that were seen.
        recipe: The run's settings.
        coloured: Whether they are colours, `0xRRGGBB`.
        surely: Whether something is wrong. If false, only the other reading of 0 is suggested.
    """
    if recipe.map_values:
        return f"map_values is {','.join(recipe.map_values)}: name each value once with its number" if surely else ""
    if coloured:
        return _of_colours(sorted(values), recipe) if surely else ""
    return _of_zero(sorted(values - {IGNORED}), recipe) or (_of_numbers(sorted(values), recipe) if surely else "")


def _of_zero(seen: list[int], recipe: Segmentation) -> str:
    """Suggest the other reading of 0 if it fits the values seen (without 255); empty otherwise."""
    count = len(recipe.class_names)
    if len(seen) < 2:  # one value fits either reading
        return ""
    if recipe.zero_is_unlabelled and seen[0] == 0 and seen[-1] < count:
        return f"if 0 is {recipe.class_names[0]!r}, pass --no-zero-is-unlabelled"
    if not recipe.zero_is_unlabelled and seen[-1] == count:
        return "if 0 is unlabelled and classes are numbered from 1, pass --zero-is-unlabelled"
    return ""


def _of_numbers(everything: list[int], recipe: Segmentation) -> str:
    """Suggest a mapping of the values seen to the classes if there are as many, otherwise say what may be wrong."""
    names = recipe.class_names
    plain = [value for value in everything if value != IGNORED]
    readings = [(plain, False), (everything[1:], True), (plain[1:], True)]
    if recipe.zero_is_unlabelled:
        readings = [*readings[1:], readings[0]]
    for seen, zero in ((everything, False), *readings):
        if len(seen) == len(names) and (not zero or everything[0] == 0):
            return _flags(seen, names, zero=zero)
    if len(plain) > len(names) + 1:
        return (
            f"these are {len(everything)} values for {len(names)} classes: masks of instances rather than classes, "
            "edges that were blended by resizing, or a class list that is too short; write label images of class "
            "numbers, or set num_classes (or classes)"
        )
    return (
        "set num_classes (or classes) to match the data, or map the values to class numbers, as in --map-values "
        f"{everything[-1]}={int(recipe.zero_is_unlabelled)}"
    )


def _flags(seen: list[int], names: tuple[str, ...], *, zero: bool) -> str:
    """Return the flags that map the values seen to the classes in their order."""
    entries = [f"{value}={index + zero}" for index, value in enumerate(seen) if value != index + zero]
    flag = "--zero-is-unlabelled" if zero else "--no-zero-is-unlabelled"
    meant = ", ".join(f"{value} is {name!r}" for value, name in zip(seen[:5], names, strict=False))
    more = " and so on" if len(seen) > 5 else ""
    return f"if {meant}{more}, pass {' '.join(['--map-values', ','.join(entries), flag] if entries else [flag])}"


def _of_colours(colours: list[int], recipe: Segmentation) -> str:
    names, first = recipe.class_names, int(recipe.zero_is_unlabelled)
    if len(colours) > len(names) + 10:
        return (
            f"these are {len(colours)} colours for {len(names)} classes: a photograph, or edges that were blended; "
            "write label images of class numbers, or of one colour per class"
        )
    start = {len(names): first, len(names) + first: 0}.get(len(colours))
    entries = [
        f"{colour_in_words(colour)}={'NUMBER' if start is None else start + index}"
        for index, colour in enumerate(colours)
    ]
    return (
        f"map each colour to a class number, as in --map-values '{','.join(entries)}' (classes are numbered "
        f"{first} to {len(names) - 1 + first}; {IGNORED} is unlabelled)"
    )
