"""Shard parameters over the processes of a run with torch's FSDP2; they are gathered where they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from scalekd.engine.processes import Processes

# Smallest and largest fraction of a model's parameters in one sharded part; smaller modules stay with the rest.
_LEAST, _MOST = 0.01, 0.25


def shard_teacher(teacher: nn.Module, device: torch.device, run: Callable[[], object]) -> None:
    """Shard the blocks of a teacher that is not on its device yet; its other parts move there unsharded.

    Blocks are gathered one at a time, in the full forward as well as in the tail's, because no module that contains
    them is sharded.

    Args:
        teacher: The frozen teacher, in the layout that `prepare` gave it.
        device: The device that it will run on.
        run: Runs the teacher and its tail once on their current device.
    """
    called, mesh = _called(run), _mesh(device)
    for part in list(_parts(teacher, called)):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)


def shard_trained(
    method: nn.Module,
    student: nn.Module,
    average: ModelEmaV3 | None,
    device: torch.device,
    run: Callable[[], object],
) -> None:
    """Move a method to its device, and shard its trained parameters and their moving average.

    The student is validated without the rest of the method, so it and each projector are sharded separately.

    Args:
        method: The method; its teacher is already on the device, or sharded.
        student: The student, a child of the method.
        average: The student's moving average, if any.
        device: The device that it will run on.
        run: Runs the method once on its current device.
    """
    method.to(device)
    called, mesh = _called(run), _mesh(device)
    outer = [part for child in method.children() if child is not student for part in _outermost(child, called)]
    names = {part: name for name, part in student.named_modules()}
    inner = [names[part] for part in _parts(student, called)]
    students = [student] if average is None else [student, average.module]
    for copy in students:
        for name in inner:
            fully_shard(copy.get_submodule(name), mesh=mesh, reshard_after_forward=True)
    for part in (*students, *outer):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    if average is not None:
        average.foreach = False  # foreach cannot mix sharded parameters and plain buffers


def whole(tensor: Tensor) -> Tensor:
    """Return the full tensor; if it is sharded, all processes must call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor, or the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _mesh(device: torch.device) -> DeviceMesh:
    return init_device_mesh(device.type, (torch.distributed.get_world_size(),))


def _called(run: Callable[[], object]) -> set[nn.Module]:
    """Return the modules that are called during `run`.

    Modules of which only the weights are read cannot be gathered, because FSDP gathers in a module's forward.
    """
    called: set[nn.Module] = set()
    handle = register_module_forward_pre_hook(lambda module, _: called.add(module))
    try:
        with torch.no_grad():
            run()
    finally:
        handle.remove()
    return called


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _parts(module: nn.Module, called: set[nn.Module]) -> Iterator[nn.Module]:
    """Yield the parts of a model that are sharded and gathered one at a time, mostly blocks."""
    total = _size(module)

    def walk(parent: nn.Module) -> Iterator[nn.Module]:
        for child in parent.children():
            size = _size(child)
            if child in called and _LEAST * total <= size <= _MOST * total:
                yield child
            elif size >= _LEAST * total:
                yield from walk(child)

    return walk(module)


def _outermost(module: nn.Module, called: set[nn.Module]) -> Iterator[nn.Module]:
    """Yield a module if it is called, otherwise the outermost called modules in it."""
    if module in called:
        yield module
        return
    for child in module.children():
        yield from _outermost(child, called)


def kept_state(models: nn.ModuleList, optimizers: Sequence[Optimizer], processes: Processes) -> dict[str, Any]:
    """Return the state of models and optimisers for a checkpoint, with full tensors; called by all processes together.

    Returns:
        `state_dict` of the models, and the `optimizers` in their order. Only the first process gets the tensors.
    """
    state = {"state_dict": models.state_dict(), "optimizers": [each.state_dict() for each in optimizers]}
    return state if processes.count == 1 else tree_map(_kept, state)


def restore_state(models: nn.ModuleList, optimizers: Sequence[Optimizer], state: Mapping[str, Any]) -> None:
    """Load what `kept_state` returned into models and optimisers; each process takes its own shard.

    The state must have all tensors of the models (see `Checkpoint.check_fits`).
    """
    stored = state["state_dict"]
    models.load_state_dict({name: _cut(stored[name], own) for name, own in models.state_dict().items()})
    for optimizer, content in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(content)
        for parameter, values in optimizer.state.items():
            values.update({name: _cut(value, parameter) for name, value in values.items()})


def _kept(value: Any) -> Any:
    """Gather a tensor for a checkpoint: the full tensor in the first process, None in the others."""
    if not isinstance(value, Tensor):
        return value
    full = whole(value)
    return full.cpu() if torch.distributed.get_rank() == 0 else None


def _cut(value: Any, like: Tensor) -> Any:
    """Return this process's shard of a full tensor if `like` is sharded, otherwise the value as is."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
