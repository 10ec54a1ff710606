"""Pages that the code itself writes when the site is built: every recipe key, every command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer import Context
from typer.cli import get_docs_for_click
from typer.main import get_command

from scalekd.cli.help import in_words
from scalekd.cli.main import app
from scalekd.cli.options import shown_default, type_in_words
from scalekd.recipes import GROUPS, Keys
from scalekd.recipes.schema import methods_with
from scalekd.tasks import detection, segmentation

_ALL_KEYS = (
    ("keys.md", "Recipe keys", "distill", GROUPS),
    ("keys-detection.md", "Recipe keys of detection", "transfer detection", detection.GROUPS),
    ("keys-segmentation.md", "Recipe keys of segmentation", "transfer segmentation", segmentation.GROUPS),
)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages of keys and commands."""
    for name, title, command, groups in _ALL_KEYS:
        files.append(File.generated(config, name, content="\n\n".join(_keys(title, command, groups))))
    files.append(File.generated(config, "commands.md", content=_commands()))
    return files


def _keys(title: str, command: str, groups: Sequence[type[Keys]]) -> Iterator[str]:
    """The paragraphs of a page of keys."""
    yield f"# {title}"
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
            yield f"### `{name}` {{: #{name} }}"
            yield f"`{kind}` · {known}{only}"
            yield field.description or ""


def _commands() -> str:
    """All commands as typer describes them."""
    command = get_command(app)
    text = get_docs_for_click(obj=command, ctx=Context(command, info_name="scalekd"), name="scalekd", title="Commands")
    return in_words(text)
