"""Formatting of `--help` as plain text: options below headings, examples at the end, nothing truncated at any width.

Of a command with many flags, `--help` lists those that one needs first, and `--help all` every one.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

WIDEST = 120
LATER = "shown_later"  # attribute of a command's function: names of the parameters that only `--help all` lists
_TYPES = {
    "str": "TEXT", "list[str]": "TEXT", "path": "PATH", "list[path]": "PATH", "int": "INT", "int range": "INT",
    "float": "FLOAT",
}  # fmt: skip
_EXAMPLES = "\n\nExamples:\n"


def in_words(option: str) -> str:
    """Write the type of an option as for recipe keys: `--output <path>` -> `--output PATH`."""
    return re.sub(r"<([^<>]+)>", lambda kind: _TYPES.get(kind[1], kind[1]), option)


class _Plain:
    """Base of commands and groups: a docstring that may end in examples."""

    def __init__(self, *args: Any, **others: Any) -> None:
        text, heading, examples = (others.get("help") or "").partition(_EXAMPLES)
        epilog = f"{heading.strip()}\n\n{examples.rstrip()}" if examples else None
        whole = {"help": text, "epilog": epilog, "short_help": text.partition("\n\n")[0]}  # click's would be cut
        super().__init__(*args, **others | whole)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples as is."""
        epilog: str | None = self.epilog  # type: ignore[attr-defined]
        if epilog:
            formatter.write("\n" + epilog.replace("\n\n", "\n", 1) + "\n")


class Command(_Plain, TyperCommand):
    """A command whose options are listed below the headings of their groups."""

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Return the command's arguments, optional ones in brackets."""
        arguments = [p for p in self.get_params(ctx) if p.param_type_name == "argument"]
        return ["[OPTIONS]", *(_name(p) if p.required else f"[{_name(p)}]" for p in arguments)]

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write arguments and options; those without their own heading come first."""
        sections: dict[str, list[tuple[str, str]]] = {}
        later: frozenset[str] = getattr(self.callback, LATER, frozenset())
        later = frozenset() if sys.argv[-2:] == ["--help", "all"] else later
        for parameter in self.get_params(ctx):
            if parameter.name in later:
                continue
            is_argument = parameter.param_type_name == "argument"
            if record := parameter.get_help_record(ctx):
                heading = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or "Options"
                name = _name(parameter) if is_argument else in_words(record[0])
                sections.setdefault(heading, []).append((name, record[1]))
        for heading, rows in sections.items():
            with formatter.section(heading):
                formatter.write_dl(rows)
        if later:
            formatter.write(f"\n{len(later)} more flags: {ctx.command_path} --help all\n")


class Group(_Plain, TyperGroup):
    """A group of commands."""


def _name(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())
