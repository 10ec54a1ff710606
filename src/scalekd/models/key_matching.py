"""Match the keys of a weights file to those of a model: prefixes, other authors' names, heads; otherwise strict."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scalekd.errors import UserError

# The names of the functions in timm's modules that convert other authors' names.
_CONVERTERS = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")
# Components that torch adds to the names of modules that it wraps, in front of a key or within it.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Common names of the layers that give the logits, in code other than timm's.
_HEADS = {
    "head", "heads", "fc", "classifier", "linear", "logits", "probe", "cls_head", "linear_head", "fc_head", "head_dist",
    "dino_head", "ibot_head", "classification_head",
}  # fmt: skip
_COUNTERS = {"n_averaged"}  # of torch's averaged models; not a weight
_UNLEARNED = ".num_batches_tracked"  # filled in if a file lacks it, as torch does
_FEW = 3
_MOST = 0.9  # fraction of a model's keys from which a part of a file counts as a copy of the model
_FOREIGN_LIBRARIES = {
    "embeddings.patch_embeddings.projection.": "Hugging Face transformers'; use timm's own weights of this model",
    "encoder.layers.encoder_layer_0.": "torchvision's; specify the model as torchvision:NAME",
    "features.0.0.": "torchvision's; specify the model as torchvision:NAME",
    "data_preprocessor.": "mmpretrain's; see `scalekd import`",
}


@dataclass(frozen=True)
class Fitted:
    """A file's weights, matched to the keys of a model.

    Attributes:
        state: Tensors by the model's keys, and tensors under keys that the model does not have.
        plain: The file's tensors without their common prefix, before timm's conversion.
        missing: Keys of the model that are not in `state`.
        foreign: Keys of `state` that the model does not have.
        head_width: Number of classes of the file's head; 0 without a head.
        notes: How the keys were changed, one line each.
    """

    state: dict[str, Tensor]
    plain: dict[str, Tensor]
    missing: set[str]
    foreign: set[str]
    head_width: int
    notes: tuple[str, ...]


def fit_keys(model: nn.Module, state: Mapping[str, Tensor]) -> Fitted:
    """Match a file's keys to the model's: as they are, without a common prefix, or converted by timm.

    Args:
        model: A model of any resolution, with a head of any width or none.
        state: The file's tensors.

    Returns:
        The first match in which no key is missing or foreign; otherwise the one with the fewest such keys outside the
        head.
    """
    wanted = model.state_dict()
    cleaned = {_unwrapped(key): tensor for key, tensor in state.items()}
    ways = []
    for prefix in _prefixes(cleaned, wanted):
        plain = {key.removeprefix(prefix): tensor for key, tensor in cleaned.items()}
        outside = any(not key.startswith(prefix) and not _may_be_head(key) for key in cleaned)
        if outside or len(plain) < len(cleaned):
            continue  # the file has several parts, of which only one has this prefix
        for converted in (_convert(plain, model), plain):
            way = _place(model, converted, plain)
            ways.append(replace(way, notes=(*_prefix_note(state, prefix), *way.notes)))
            if not way.missing and not way.foreign:
                return ways[-1]
    head = head_names(model)

    def rest(way: Fitted) -> int:
        return sum(not _is_under(key, head) for key in way.missing | way.foreign)

    return min(ways, key=lambda way: (rest(way), len(way.missing) + len(way.foreign)))


def load_weights(
    model: nn.Module, state: Mapping[str, Tensor], source: str | Path, *, fresh_head: bool = False
) -> tuple[str, ...]:
    """Load a complete state dict, resampling position embeddings to the model's grid as timm does.

    Args:
        model: A timm model.
        state: Its state dict, at any resolution and of any floating-point type.
        source: Where the weights are from, for messages.
        fresh_head: Whether the model keeps its own random head if the file's head has other classes or is absent.

    Returns:
        How the file's keys were changed, one line each.

    Raises:
        UserError: If keys or shapes do not match; names them.
    """
    return load_fitted(model, fit_keys(model, state), state, source, fresh_head=fresh_head)


def load_fitted(
    model: nn.Module, fitted: Fitted, state: Mapping[str, Tensor], source: str | Path, *, fresh_head: bool = False
) -> tuple[str, ...]:
    """Load weights whose keys `fit_keys` has matched; see `load_weights`."""
    wanted, notes = model.state_dict(), fitted.notes
    if fresh_head:
        fitted, fresh = _with_fresh_head(model, fitted)
        notes = (*notes, *([fresh] if fresh else []))
    if fitted.missing or fitted.foreign:
        raise UserError(f"weights: {source} {_why_not(state, wanted, fitted)}")
    wrong = [key for key in wanted if fitted.state[key].shape != wanted[key].shape]
    if wrong:
        shapes = ", ".join(
            f"{key} {list(fitted.state[key].shape)} (model: {list(wanted[key].shape)})" for key in sorted(wrong)[:_FEW]
        )
        raise UserError(f"weights: {source} does not fit the model; {len(wrong)} shapes differ: {shapes}")
    model.load_state_dict(fitted.state)
    return notes


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules that give the logits, from timm, or else the last linear layer or convolution."""
    if hasattr(model, "get_classifier"):
        given = model.get_classifier()  # type: ignore[operator]
        heads = [part for part in (given if isinstance(given, tuple | list) else (given,)) if list(part.parameters())]
        named = tuple(name for name, module in model.named_modules() if any(module is head for head in heads))
        stated = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
        return named or ((stated,) if isinstance(stated, str) else tuple(stated))
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return tuple(layers[-1:])


def likely_head_width(state: Mapping[str, Tensor], classifier: str | tuple[str, ...] | None) -> int | None:
    """Guess the number of classes of a file's head before the model is built; None if no key ends with `classifier`."""
    names = (classifier,) if isinstance(classifier, str) else classifier or ()
    found = [key for key in state for name in names if f".{key}".endswith(f".{name}.weight")]
    return len(state[min(found, key=len)]) if found else None


def stored_resolution(model: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """Infer the image side in pixels at which weights without a card were trained, from their position embeddings.

    Args:
        model: A timm model of any resolution.
        state: The weights.

    Returns:
        The image side; None if it cannot be inferred, or is the model's own resolution.
    """
    own, stored = dict(model.named_parameters()).get("pos_embed"), state.get("pos_embed")
    patches: Any = getattr(model, "patch_embed", None)
    if own is None or stored is None or not own.ndim == stored.ndim == 3 or not hasattr(patches, "feat_ratio"):
        return None
    # Class tokens are not part of the grid. The weights of DINOv2's authors include one where timm's do not.
    for tokens in (own.shape[1] - patches.num_patches, 0, 1):
        positions = max(stored.shape[1] - tokens, 0)
        side = isqrt(positions)
        if side and side**2 == positions:
            return None if positions == patches.num_patches else int(side * patches.feat_ratio())
    return None


def _prefixes(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield prefixes to try: none, the one before most of the model's keys, then those common to all keys."""
    yield ""
    counts = _found_under(state, wanted)
    tried = {""}
    if counts:
        tried.add(best := max(counts, key=lambda prefix: (counts[prefix], -len(prefix))))
        if best:
            yield best
    keys = [key.split(".")[:-1] for key in state]
    first, last = min(keys, default=[]), max(keys, default=[])
    common = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    for length in range(1, common + 1):
        prefix = ".".join(first[:length]) + "."
        if prefix not in tried:
            yield prefix


def _found_under(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Counter[str]:
    """Count the model's keys that the file has under each prefix, including the empty one."""
    parts = (key.split(".") for key in state)
    return Counter(
        "".join(f"{part}." for part in key[:length])
        for key in parts
        for length in range(len(key))
        if ".".join(key[length:]) in wanted
    )


def _convert(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Convert a state dict with timm's own converter of published checkpoints, if the model has one."""
    module = sys.modules[type(model).__module__]
    converter = next((getattr(module, name) for name in _CONVERTERS if hasattr(module, name)), None)
    if converter is None:
        return state
    for more in ((model,), ()):  # some of timm's converters take only the weights
        try:
            converted: dict[str, Tensor] = converter(dict(state), *more)
        except TypeError:
            continue
        except (RuntimeError, ValueError, LookupError, AttributeError, AssertionError):
            return state  # weights of another model, or position embeddings that are not a grid
        return converted
    return state


def _place(model: nn.Module, converted: Mapping[str, Tensor], plain: dict[str, Tensor]) -> Fitted:
    """Match converted tensors to the model's keys: handle tensors that are not learned, and a head of another name."""
    wanted, state, notes = model.state_dict(), dict(converted), []
    if renamed := sorted(plain.keys() - state.keys()):
        notes.append(f"its keys are read as timm converts them; converted or left out: {_few(renamed)}")
    # Depending on the version of timm or of the authors' code, files contain tensors that a model computes itself.
    computed = {key: value for key, value in model.named_buffers() if key not in wanted}
    for key in [key for key in state if key not in wanted]:
        value = computed.get(key)
        if key in _COUNTERS or (value is not None and (value.shape != state[key].shape or _equal(value, state[key]))):
            del state[key]
    state |= {k: t for k, t in wanted.items() if k not in state and k.endswith(_UNLEARNED)}
    names = head_names(model)
    if (other := _other_head(state, wanted, names)) is not None:
        state |= {f"{names[0]}.{kind}": state.pop(f"{other}.{kind}") for kind in ("weight", "bias")}
        notes.append(f"its layer {other!r} is read as the head {names[0]!r}")
    missing, foreign = wanted.keys() - state.keys(), state.keys() - wanted.keys()
    widths = [len(tensor) for key, tensor in state.items() if _is_under(key, names) and tensor.ndim > 1]
    return Fitted(state, plain, missing, foreign, widths[0] if widths else 0, tuple(notes))


def _other_head(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], names: tuple[str, ...]) -> str | None:
    """Return the file's only layer that the model lacks if it must be the head under another name, otherwise None.

    `names` are the model's own heads.
    """
    own = {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    layers = {key.rpartition(".")[0] for key in state if key not in wanted}
    if len(names) != 1 or len(layers) != 1 or state.keys() & own or not wanted.keys() - own <= state.keys():
        return None
    (other,) = layers
    if not _may_be_head(f"{other}.") or not {f"{other}.weight", f"{other}.bias"} <= state.keys():
        return None
    weight = wanted.get(f"{names[0]}.weight")
    return other if weight is None or weight.shape[1:] == state[f"{other}.weight"].shape[1:] else None


def _with_fresh_head(model: nn.Module, fitted: Fitted) -> tuple[Fitted, str | None]:
    """Use the model's own head if the file's head has other classes or is absent; also returns a line about it."""
    wanted, names = model.state_dict(), head_names(model)
    head = {key for key in wanted if _is_under(key, names)}
    fits = all(key in fitted.state and fitted.state[key].shape == wanted[key].shape for key in head)
    heads = {key for key in fitted.foreign if _is_under(key, names) or _may_be_head(key)}
    if (fits and not heads) or (fitted.missing - head) or (fitted.foreign - heads):
        return fitted, None
    kept = {key: tensor for key, tensor in fitted.state.items() if key not in heads}
    state = kept if fits else kept | {key: wanted[key] for key in head}
    whole = Fitted(state, fitted.plain, set(), set(), fitted.head_width, fitted.notes)
    file = f"the file has {fitted.head_width} classes" if fitted.head_width else "the file has none"
    if heads and not fitted.head_width:
        file = f"the file has another ({_few(heads)})"
    if fits:
        return whole, f"the file's head ({_few(heads)}) is left out"
    width = next((len(wanted[key]) for key in sorted(head) if wanted[key].ndim > 1), 0)
    if width == fitted.head_width:
        file = "the file's does not fit"
    return whole, f"head is fresh: {file}, the data {width}"


def _unwrapped(key: str) -> str:
    """Remove the names of torch's wrappers from a key."""
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def _prefix_note(state: Mapping[str, Tensor], prefix: str) -> list[str]:
    """Describe what is removed from the keys, as one line; empty if nothing is."""
    plain = {key: _unwrapped(key).removeprefix(prefix) for key in state}
    changed = next((key for key in state if plain[key] != key), None)
    if changed is None:
        return []
    before = changed.removesuffix(plain[changed])
    if before == changed:  # a wrapper in the middle of the key
        before = next(part for part in changed.split(".") if part in _WRAPPERS)
    return [f"its keys are read without {before!r}"]


def _why_not(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], fitted: Fitted) -> str:
    """Describe why a file does not fit a model, as the part of the message after the file's name."""
    weights = {key: tensor for key, tensor in wanted.items() if not key.endswith(_UNLEARNED)}
    counts = _found_under(state, weights)
    copies = sorted(prefix for prefix, count in counts.items() if count >= _MOST * len(weights))
    if len(copies) > 1:
        named = " and ".join(repr(prefix) if prefix else "no prefix" for prefix in copies)
        return f"holds {len(copies)} copies of the model, under {named}; save one of them alone"
    if copies and copies[0]:
        others = sorted(key for key in state if not key.startswith(copies[0]))
        if others:
            return (
                f"holds the model under {copies[0]!r} next to {len(others)} other keys ({_few(others)}); "
                f"save the keys under {copies[0]!r} alone"
            )
    parts = [
        f"{len(keys)} keys {what}: {_few(keys)}"
        for what, keys in (("missing", fitted.missing), ("not in the model", fitted.foreign))
        if keys
    ]
    there = len(wanted.keys() & fitted.state.keys())
    if there >= _MOST * len(wanted):
        what = "is incomplete or of a variant" if fitted.missing else "is of a variant"
        return f"{what} of this model; {'; '.join(parts)}"
    of_whom = next((who for mark, who in _FOREIGN_LIBRARIES.items() if any(mark in key for key in state)), "")
    hint = f"; its names are {of_whom}" if of_whom else ""
    return f"belongs to another architecture; {'; '.join(parts)}{hint}"


def _few(keys: Collection[str]) -> str:
    return ", ".join(sorted(keys)[:_FEW]) + (", ..." if len(keys) > _FEW else "")


def _is_under(key: str, modules: tuple[str, ...]) -> bool:
    return key.startswith(tuple(f"{name}." for name in modules))


def _may_be_head(key: str) -> bool:
    """Whether a key that the model lacks has a usual name of a head, or is not a weight."""
    return key.split(".", maxsplit=1)[0] in _HEADS or key in _COUNTERS


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.to(torch.float64), other.to(torch.float64))
