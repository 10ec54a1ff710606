"""Every recipe key as a flag of a command."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from scalekd.errors import UserError
from scalekd.keys import Keys
from scalekd.recipes import GROUPS
from scalekd.recipes.text import parse

Flags = dict[str, Any]
MODEL = "A run's, adapt's or timm folder, a weights file, or a timm name."


def with_recipe_flags(
    *names: str,
    groups: Sequence[type[Keys]] = GROUPS,
    told: Mapping[str, str] | None = None,
    hidden: Collection[str] = (),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a flag for each of these recipe keys; it takes those set as `flags`.

    Args:
        names: The keys; by default each key of `groups` that is no parameter of the command's own.
        groups: Where the keys are.
        told: What `--help` says of a key that means something else to the command, or has another default there.
        hidden: Keys that are taken but not offered, as the command does not depend on them.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        known = {name: (group, field) for group in groups for name, field in group.model_fields.items()}
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "flags"]
        taken = {p.name for p in own}
        fields = {name: known[name] for name in names or known if name not in taken}
        texts = {name: described(field) for name, (_, field) in fields.items()} | dict(told or {})

        def wrapped(**arguments: Any) -> None:
            given = {name: arguments.pop(name) for name in fields}
            flags = {name: _parse(name, value, fields[name][1]) for name, value in given.items() if value is not None}
            command(**arguments, flags=flags)

        wrapped.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            own + [_parameter(name, *fields[name], texts[name], hidden=name in hidden) for name in fields]
        )
        wrapped.__annotations__ = {p.name: p.annotation for p in wrapped.__signature__.parameters.values()}  # type: ignore[attr-defined]
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
    """What a key means, and its default if it has one."""
    default = shown_default(field)
    if field.annotation is bool:
        default = {"True": "yes", "False": "no"}[default]
    return f"{field.description}  [default: {default}]" if default else str(field.description)


def shown_default(field: FieldInfo) -> str:
    """A key's default as one would type it; empty where there is none."""
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is None or default == {}:
        return ""
    if isinstance(default, tuple):
        return ",".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in default)
    return str(default)


def type_in_words(annotation: Any) -> str:
    """A short word for a type: INT, FLOAT, A|B for choices, A,B for tuples; what has a title is called by it."""
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
    """A flag's text -> what YAML would have given for it; the recipe's schema does the rest."""
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
    """`'{depth: 4}'` -> a dictionary.

    Raises:
        UserError: If it is no YAML mapping.
    """
    value = parse(text, name)
    if not isinstance(value, dict):
        raise UserError(f"{name}: {text!r} is no YAML mapping such as '{{global_pool: avg}}'")
    return value
