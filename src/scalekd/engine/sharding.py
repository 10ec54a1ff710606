"""Parameters that the processes of a run hold a part of each (torch's FSDP2), put together where they are needed."""

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

# Shares of a model's parameters that one part of it may have: what is smaller stays with the rest.
_LEAST, _MOST = 0.01, 0.25


def shard_teacher(teacher: nn.Module, device: torch.device, run: Callable[[], object]) -> None:
    """Leave each process a part of a teacher that is not on its device yet; the rest of it moves there whole.

    Blocks are put together one at a time, in the whole forward as in the tail's: no module around them is sharded.

    Args:
        teacher: Frozen, laid out by `prepare`.
        device: Where it will run.
        run: Runs it and its tail once where they are.
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
    """Move a method to its device and leave each process a part of what is trained, and of its moving average.

    The student is validated without the method around it, so that it and each projector are sharded by themselves.

    Args:
        method: Its teacher is there already, or sharded.
        student: A child of it.
        average: The student's moving average.
        device: Where it will run.
        run: Runs the method once where it is.
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
        average.foreach = False  # parameters are of another kind than buffers


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together, by all processes at once, where each holds a part of it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _mesh(device: torch.device) -> DeviceMesh:
    return init_device_mesh(device.type, (torch.distributed.get_world_size(),))


def _called(run: Callable[[], object]) -> set[nn.Module]:
    """The modules that are called: those of which only the weights are read cannot be put together by themselves."""
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
    """The parts of a model to put together one at a time, blocks mostly."""
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
    """A module if it is called, else those in it that are."""
    if module in called:
        yield module
        return
    for child in module.children():
        yield from _outermost(child, called)


def kept_state(models: nn.ModuleList, optimizers: Sequence[Optimizer], processes: Processes) -> dict[str, Any]:
    """What a checkpoint holds of models and optimisers: whole tensors, put together by all processes at once.

    Returns:
        `state_dict` of the models, and the `optimizers` in their order; without tensors in all but the first process.
    """
    state = {"state_dict": models.state_dict(), "optimizers": [each.state_dict() for each in optimizers]}
    return state if processes.count == 1 else tree_map(_kept, state)


def restore_state(models: nn.ModuleList, optimizers: Sequence[Optimizer], state: Mapping[str, Any]) -> None:
    """Give models and optimisers what `kept_state` gave, each process its own part."""
    own, stored = models.state_dict(), state["state_dict"]
    models.load_state_dict(
        {name: _cut(tensor, own[name]) if name in own else tensor for name, tensor in stored.items()}
    )
    for optimizer, content in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(content)
        for parameter, values in optimizer.state.items():
            values.update({name: _cut(value, parameter) for name, value in values.items()})


def _kept(value: Any) -> Any:
    """What a checkpoint holds of a value: whole tensors, in the first process; the others only help."""
    if not isinstance(value, Tensor):
        return value
    put_together = whole(value)
    return put_together.cpu() if torch.distributed.get_rank() == 0 else None


def _cut(value: Any, like: Tensor) -> Any:
    """This process's part of a whole tensor, if one like it is sharded."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
