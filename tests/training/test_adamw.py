"""AdamW with the fused kernel gives the values of the plain one, in whatever memory layout its tensors come."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from scalekd.engine.adamw import AlignedAdamW, can_be_fused
from scalekd.engine.optimisation import build_optimizer
from scalekd.recipes import load

SHAPE = (6, 4, 3, 3)
STEPS = 4
# The fused kernel may round differently. An update of a wrong element is of the size of the learning rate.
RATE, ROUNDING = 1e-2, 1e-6

Step = Callable[[torch.optim.Optimizer, nn.Parameter, int], None]


def contiguous(tensor: Tensor) -> Tensor:
    return tensor.contiguous()


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def gradient(number: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(number))


def train(optimizer: torch.optim.Optimizer, weight: nn.Parameter, prepare: Step) -> None:
    for number in range(STEPS):
        weight.grad = gradient(number)
        prepare(optimizer, weight, number)
        optimizer.step()


def groups(weight: nn.Parameter) -> list[dict[str, object]]:
    return [{"params": [weight], "weight_decay": 0.05}]


def nothing(_optimizer: torch.optim.Optimizer, _weight: nn.Parameter, _number: int) -> None:
    """Leave weight, gradient and moments as they are."""


def gradient_channels_last(_optimizer: torch.optim.Optimizer, weight: nn.Parameter, _number: int) -> None:
    assert weight.grad is not None
    weight.grad = channels_last(weight.grad)


def weight_turned(_optimizer: torch.optim.Optimizer, weight: nn.Parameter, number: int) -> None:
    """Turn the weight channels-last after its first step, as a user's own code may."""
    if number == 1:
        weight.data = channels_last(weight.data)


def moments_restored_contiguous(optimizer: torch.optim.Optimizer, _weight: nn.Parameter, number: int) -> None:
    """Load moments from a checkpoint whose format has no memory layouts."""
    if number == 2:
        state = optimizer.state_dict()
        for values in state["state"].values():
            values.update({name: contiguous(value) for name, value in values.items()})
        optimizer.load_state_dict(state)


@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("prepare", [nothing, gradient_channels_last, weight_turned, moments_restored_contiguous])
def test_every_layout_is_updated_as_by_the_plain_optimiser(layout: Callable[[Tensor], Tensor], prepare: Step) -> None:
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(99))
    plain, fused = nn.Parameter(start.clone()), nn.Parameter(layout(start.clone()))
    train(torch.optim.AdamW(groups(plain), lr=RATE, foreach=False), plain, nothing)
    train(AlignedAdamW(groups(fused), RATE), fused, prepare)
    assert (plain - start).abs().mean() > RATE
    assert torch.allclose(fused, plain, atol=ROUNDING, rtol=0)


def test_axes_of_one_element_are_not_copied() -> None:
    weight = nn.Parameter(channels_last(torch.randn(8, 1, 3, 3)))
    weight.grad = torch.randn(8, 1, 3, 3)
    before = weight.grad.data_ptr()
    AlignedAdamW(groups(weight), RATE).step()
    assert weight.grad.data_ptr() == before


def test_a_recipe_with_adamw_gets_it_wherever_the_kernel_fits() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert isinstance(build_optimizer(load(None, {}), model), AlignedAdamW)
    spread = nn.Linear(3, 4)
    spread.weight.data = torch.randn(4, 6)[:, ::2]  # elements with gaps between them
    assert not can_be_fused(spread.weight)
    assert type(build_optimizer(load(None, {}), spread)) is torch.optim.AdamW
