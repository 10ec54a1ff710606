"""Parses YAML text into plain values safely: any text is either read or refused with a one-line error."""

from __future__ import annotations

from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from scalekd.errors import UserError

_LARGEST = 64 * 1024  # bytes


class _Loader(yaml.SafeLoader):
    """Loads plain values only; refuses duplicate keys, and aliases (a small text could expand to a huge value)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not supported; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            names = [key.value for key, _ in node.value]
            twice = next((name for name in names if names.count(name) > 1), names[-1])
            raise yaml.YAMLError(f"{twice!r} is given twice")
        return mapping


def parse(text: str, source: str) -> Any:
    """Parse a YAML text.

    Args:
        text: The text.
        source: Where the text comes from, for errors.

    Raises:
        UserError: If it is not valid YAML.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise UserError(f"{source}: not valid YAML: nested too deeply") from None
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    except Exception as error:  # from YAML's constructors: '2024-99-99', '!!bool x', an integer of 5,000 digits
        raise UserError(f"{source}: not valid YAML: a value is not of its type ({error})") from None


def read_keys(file: Path | Traversable, source: str) -> dict[str, Any]:
    """Read the keys of a recipe file; an empty file has no keys.

    Args:
        file: The file.
        source: Name of the file in errors.

    Raises:
        UserError: If it cannot be read, is too large for a recipe, or is not a YAML mapping.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise UserError(f"{source}: is larger than {_LARGEST // 1024} KiB, so it is not a recipe")
        keys = parse(content.decode(), source)
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: is not UTF-8 text (at byte {error.start})") from None
    if keys is None:
        return {}
    if not isinstance(keys, dict):
        raise UserError(f"{source}: must be a mapping of keys, not a {type(keys).__name__}")
    return keys
