"""Models described by a timm `config.json`, on the hub (`hf-hub:NAME`) or in a folder (`local-dir:FOLDER`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import timm
from huggingface_hub import constants, get_session
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled
from timm.models import PretrainedCfg
from timm.models._hub import load_model_config_from_hf, load_model_config_from_path

from scalekd.errors import UserError, first_line

HUB, LOCAL = ("hf-hub:", "hf_hub:"), "local-dir:"
_PATIENCE = 5.0  # seconds to wait for any answer of the hub


@dataclass(frozen=True)
class Described:
    """The description of a model in its `config.json`.

    Attributes:
        architecture: timm's name of the architecture.
        args: Further arguments of `timm.create_model`.
        config: Resolution, normalisation, classes and the like.
        classes: Class names in the order of the logits; empty if it has none.
    """

    architecture: str
    args: dict[str, Any]
    config: PretrainedCfg
    classes: tuple[str, ...]


def is_described(name: str) -> bool:
    """Whether a name refers to the hub or to a timm folder."""
    return name.startswith((*HUB, LOCAL))


def read_description(name: str, fixed: set[str]) -> Described:
    """Read a model's `config.json` from the hub or a folder.

    Args:
        name: `hf-hub:OWNER/NAME` or `local-dir:FOLDER`.
        fixed: Arguments that a file must not set.

    Raises:
        UserError: If it cannot be fetched, does not name a timm model, or sets an argument in `fixed`.
    """
    place = name.partition(":")[2]
    try:
        if name.startswith(LOCAL):
            config, architecture, args = load_model_config_from_path(place)
        else:
            with answered_at_once():
                config, architecture, args = load_model_config_from_hf(place)
        known = {field.name for field in fields(PretrainedCfg)}
        parsed = PretrainedCfg(**{key: value for key, value in config.items() if key in known})
        labels = config.get("label_names") or ()
        classes = tuple(map(str, labels.values() if isinstance(labels, dict) else labels))
        args = {str(key): value for key, value in args.items() if key != "num_classes"}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"model: the config.json of {name} is not timm's ({error}); specify a timm model") from None
    except Exception as error:
        raise UserError(f"model: the config.json of {name} cannot be read: {reason_of(error)}") from error
    if not timm.is_model(architecture):
        raise UserError(f"model: the config.json of {name} names {architecture!r}, which timm does not know")
    if foreign := sorted(args.keys() & fixed):
        raise UserError(f"model: {name} wants to set {foreign[0]}, which a configuration must not; do not trust it")
    return Described(architecture, args, parsed, classes if len(classes) == parsed.num_classes else ())


@contextmanager
def answered_at_once() -> Iterator[None]:
    """Use only cached files of the hub if it does not answer, instead of retrying for a minute."""
    if constants.HF_HUB_OFFLINE or _answers():
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def _answers() -> bool:
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
    except Exception:  # the hub's client may use any HTTP library
        return False
    return True


def reason_of(error: Exception) -> str:
    """Describe in a few words why something could not be fetched."""
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} does not answer"
        return f"it is not in the local cache, and {offline}"
    if isinstance(error, EntryNotFoundError):
        return "the hub has no such file there"
    return first_line(error)
