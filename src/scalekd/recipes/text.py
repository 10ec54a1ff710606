"""YAML text -> plain values; whatever the text is, it is read or refused in one line."""

from __future__ import annotations

from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from scalekd.errors import UserError

_LARGEST = 64 * 1024


class _Loader(yaml.SafeLoader):
    """Plain values only. No aliases, by which a small text can stand for a huge value; no key twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not taken; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            names = [key.value for key, _ in node.value]
            twice = next((name for name in names if names.count(name) > 1), names[-1])
            raise yaml.YAMLError(f"{twice!r} is given twice")
        return mapping


def parse(text: str, source: str) -> Any:
    """The value of a YAML text.

    Args:
        text: The text.
        source: Where it is from, for the message.

    Raises:
        UserError: If it is not valid.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise UserError(f"{source}: not valid YAML: nested too deeply") from None
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    except Exception as error:  # of its constructors: '2024-99-99', '!!bool x', an integer of 5,000 digits
        raise UserError(f"{source}: not valid YAML: a value is not of its type ({error})") from None


def read_keys(file: Path | Traversable, source: str) -> dict[str, Any]:
    """The keys of a recipe file; an empty one has none.

    Args:
        file: The file.
        source: What to call it in the message.

    Raises:
        UserError: If it cannot be read, is too large for a recipe, or is no YAML mapping.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise UserError(f"{source}: is larger than {_LARGEST // 1024} KiB, as no recipe is")
        keys = parse(content.decode(), source)
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: is no UTF-8 text (at byte {error.start})") from None
    if keys is None:
        return {}
    if not isinstance(keys, dict):
        raise UserError(f"{source}: must be a mapping of keys, not a {type(keys).__name__}")
    return keys
