"""Writes the pages of every recipe key and every command from the code: `make reference`; a test keeps them fresh."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from typer import Context
from typer.cli import get_docs_for_click
from typer.main import get_command

from scalekd.cli.help import in_words
from scalekd.cli.main import app
from scalekd.cli.options import shown_default, type_in_words
from scalekd.keys import Keys
from scalekd.methods.registry import methods_with
from scalekd.recipes import GROUPS
from scalekd.tasks import detection, segmentation

_WRITTEN = "<!-- Written by `make reference`: change the code, not this page. -->"
_ALL_KEYS = (
    ("keys.md", "Recipe keys", "distill", GROUPS),
    ("keys-detection.md", "Recipe keys of detection", "transfer detection", detection.GROUPS),
    ("keys-segmentation.md", "Recipe keys of segmentation", "transfer segmentation", segmentation.GROUPS),
)


def pages() -> dict[str, str]:
    """The pages' texts by their names in docs/."""
    found = {name: "\n\n".join(_keys(title, command, groups)) for name, title, command, groups in _ALL_KEYS}
    return {name: text.rstrip() + "\n" for name, text in (found | {"commands.md": _commands()}).items()}


def _keys(title: str, command: str, groups: Sequence[type[Keys]]) -> Iterator[str]:
    """The paragraphs of a page of keys."""
    yield f"# {title}"
    yield _WRITTEN
    yield (
        f"A recipe of `scalekd {command}` is a flat YAML file of these keys, and each is a flag as well: "
        "`log_every: 5` is `--log-every 5`. What a recipe leaves out has the default here."
    )
    for group in groups:
        yield f"## {(group.__doc__ or '').rstrip('.')}"
        for name, field in group.model_fields.items():
            kind = "true|false" if field.annotation is bool else type_in_words(field.annotation)
            default = shown_default(field)
            known = f"default `{default.lower() if field.annotation is bool else default}`" if default else "not set"
            only = f" · `method: {methods_with(name)}` only" if groups is GROUPS and methods_with(name) else ""
            yield f"### `{name}`"
            yield f"`{kind}` · {known}{only}"
            yield field.description or ""


def _commands() -> str:
    """All commands as typer describes them."""
    command = get_command(app)
    text = get_docs_for_click(obj=command, ctx=Context(command, info_name="scalekd"), name="scalekd", title="Commands")
    title, _, rest = in_words(text).partition("\n")
    return f"{title}\n\n{_WRITTEN}\n{rest}"


if __name__ == "__main__":
    for page, content in pages().items():
        (Path(__file__).parents[1] / page).write_text(content, encoding="utf-8")
