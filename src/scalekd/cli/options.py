"""Options that several commands share, and every recipe key as a flag of a command."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from scalekd.cli.help import LATER
from scalekd.errors import UserError
from scalekd.keys import Keys
from scalekd.recipes import GROUPS
from scalekd.recipes.text import parse

Flags = dict[str, Any]
MODEL = "Folder of a run, of adapt or of timm, a weights file, or a timm name."

RecipeName = Annotated[str | None, typer.Option(help="A shipped recipe's name or a YAML file.")]
Resume = Annotated[bool, typer.Option("--resume", help="Resume the run in the output folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete a run in the output folder first.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Weights = Annotated[Path | None, typer.Option(help="safetensors file with weights for a timm name.")]
ModelArgs = Annotated[str, typer.Option(help="Further arguments of timm.create_model, as YAML.")]


def with_recipe_flags(
    *names: str,
    groups: Sequence[type[Keys]] = GROUPS,
    help_texts: Mapping[str, str] | None = None,
    hidden: Collection[str] = (),
    first: Collection[str] = (),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds a flag for each recipe key to a command; the flags set are passed as `flags`.

    Args:
        names: The keys; by default every key of `groups` that is not already a parameter of the command.
        groups: The groups that define the keys.
        help_texts: Help texts of keys that have another meaning or default in this command.
        hidden: Keys that are accepted but not listed in `--help`, because the command does not depend on them.
        first: Keys that `--help` lists, if it should not list all; `--help all` does.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        known = {name: (group, field) for group in groups for name, field in group.model_fields.items()}
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "flags"]
        taken = {p.name for p in own}
        fields = {name: known[name] for name in names or known if name not in taken}
        texts = {name: described(field) for name, (_, field) in fields.items()} | dict(help_texts or {})

        def wrapped(**arguments: Any) -> None:
            given = {name: arguments.pop(name) for name in fields}
            flags = {name: _parse(name, value, fields[name][1]) for name, value in given.items() if value is not None}
            command(**arguments, flags=flags)

        wrapped.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            own + [_parameter(name, *fields[name], texts[name], hidden=name in hidden) for name in fields]
        )
        wrapped.__annotations__ = {p.name: p.annotation for p in wrapped.__signature__.parameters.values()}  # type: ignore[attr-defined]
        setattr(wrapped, LATER, frozenset(fields).difference(hidden, first) if first else frozenset())
        wrapped.__doc__, wrapped.__name__ = command.__doc__, command.__name__
        return wrapped

    return decorate


def _parameter(name: str, group: type[Keys], field: FieldInfo, text: str, *, hidden: bool) -> inspect.Parameter:
    flag = name.replace("_", "-")
    is_switch = field.annotation is bool
    option = typer.Option(
        f"--{flag}/--no-{flag}" if is_switch else f"--{flag}",
        help=text,
        metavar=None if is_switch else type_in_words(field.annotation),
        hidden=hidden,
        rich_help_panel=(group.__doc__ or "").rstrip("."),
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[bool | None if is_switch else str | None, option],
    )


def described(field: FieldInfo) -> str:
    """Return a key's description and its default, if any."""
    default = shown_default(field)
    if field.annotation is bool:
        default = {"True": "yes", "False": "no"}[default]
    return f"{field.description}  [default: {default}]" if default else str(field.description)


def shown_default(field: FieldInfo) -> str:
    """Return a key's default as it would be typed; empty if there is none."""
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is None or default == {}:
        return ""
    if isinstance(default, tuple):
        return ",".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in default)
    return str(default)


def type_in_words(annotation: Any) -> str:
    """Return a short name of a type: its title, if any; or INT, FLOAT, A|B for choices, A,B for tuples."""
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    if str(get_origin(annotation)) == "typing.Literal":
        return "|".join(map(str, kinds))
    if get_origin(annotation) is Annotated:
        named = [part.title for part in kinds if isinstance(part, FieldInfo) and part.title]
        return named[0] if named else type_in_words(kinds[0])
    if get_origin(annotation) is tuple:
        listed = [type_in_words(kind) for kind in kinds if kind is not Ellipsis]
        return ",".join(listed) + (",..." if Ellipsis in kinds else "")
    if get_origin(annotation) is dict:
        return "YAML"
    if kinds:
        return "|".join(type_in_words(kind) for kind in kinds)
    names = {"str": "TEXT", "Path": "PATH", "int": "INT", "float": "FLOAT"}
    return names.get(getattr(annotation, "__name__", ""), "VALUE")


def _parse(name: str, value: Any, field: FieldInfo) -> Any:
    """Convert a flag's text to the value that YAML would give; the recipe's schema validates it."""
    optional = NoneType in get_args(field.annotation)
    if optional and value == "none":
        return None
    default = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(default, dict):
        return parse_mapping(name, value)
    if isinstance(default, tuple) or "tuple" in str(field.annotation):
        return [part.strip() for part in str(value).split(",") if part.strip()]
    return value


def parse_mapping(name: str, text: str) -> dict[str, Any]:
    """Parse a YAML mapping such as `'{depth: 4}'`.

    Raises:
        UserError: If the text is not a YAML mapping.
    """
    value = parse(text, name)
    if not isinstance(value, dict):
        raise UserError(f"{name}: {text!r} is not a YAML mapping such as '{{global_pool: avg}}'")
    return value
