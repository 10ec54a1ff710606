"""Counts the multiply-accumulates of a model, as papers do, and the FLOPs of a training step, as torch does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from scalekd.methods.base import Method
from scalekd.methods.outputs import TeacherOutputs
from scalekd.methods.share import FeatureShare
from scalekd.models.image_model import ImageModel
from scalekd.planner.fake import device_of, has_foreign_code, inputs, on_copy

aten = torch.ops.aten
_NORMS = frozenset(
    {
        aten.native_batch_norm,
        aten._native_batch_norm_legit,
        aten._native_batch_norm_legit_no_training,
        aten.cudnn_batch_norm,
        aten.miopen_batch_norm,
        aten._batch_norm_with_update,
        aten._batch_norm_no_update,
        aten.native_layer_norm,
        aten.native_group_norm,
        aten._fused_rms_norm,
    }
)
# With 2 per element of a norm, the counts agree with published figures within 0.4% (docs/planner.md).
MACS_PER_NORM_ELEMENT = 2


@dataclass(frozen=True)
class ModelCost:
    """Cost of a model for one image.

    Attributes:
        parameters: Number of parameters.
        macs: Multiply-accumulates of one forward at the model's resolution: the products of convolutions, linear
            layers and attention, and 2 for each element of a norm.
        macs_without_attention: `macs` without the two products of attention, `Q K^T` and `A V`. Published figures of
            Swin leave them out, those of plain ViTs include them.
    """

    parameters: int
    macs: int
    macs_without_attention: int


def model_cost(model: ImageModel) -> ModelCost:
    """Count parameters and multiply-accumulates as papers do; takes no memory and about a second."""

    def count(copy: ImageModel) -> _MacCounter:
        counter = _MacCounter(copy.model.parameters())
        image = torch.zeros(1, 3, model.resolution, model.resolution, device=device_of(copy.model))
        with torch.no_grad(), _separate_products(image.device), counter:
            copy.eval().outputs(image)
        return counter

    counter = on_copy(model, count, real=model.is_foreign)
    return ModelCost(
        parameters=sum(p.numel() for p in model.model.parameters()),
        macs=counter.macs,
        macs_without_attention=counter.macs - counter.attention,
    )


@contextmanager
def _separate_products(device: torch.device) -> Iterator[None]:
    """Compute attention as two separate products inside the context.

    The fused form is a single operation, and on the CPU one that is not counted. Autocast does not change the counts;
    it is needed for a teacher that holds its weights in bf16.
    """
    with sdpa_kernel(SDPBackend.MATH), torch.autocast(device.type, dtype=torch.bfloat16):
        yield


class _MacCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts multiply-accumulates of matrix products, convolutions and norms.

    A batched product of two activations counts as attention; a batched product with a parameter is a linear layer.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parameters = {p.untyped_storage()._cdata for p in parameters}
        self.macs = self.attention = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        operation = func._overloadpacket
        if operation in _NORMS:
            self.macs += MACS_PER_NORM_ELEMENT * args[0].numel()
        elif operation in flop_registry:
            macs = flop_registry[operation](*args, **kwargs, out_val=out) // 2
            self.macs += macs
            if operation in (aten.bmm, aten.baddbmm) and not any(map(self._is_parameter, args)):
                self.attention += macs
        return out

    def _is_parameter(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.untyped_storage()._cdata in self._parameters


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of a training step for one image: 2 for each multiply-add of a matrix product or convolution.

    The counts are those of torch's `FlopCounterMode`, except for the weight gradient of grouped convolutions, which
    torch counts as if the convolution were dense: a MobileNet-V1 would appear to need 3.5 times as much.

    Attributes:
        teacher: Forward of the teacher.
        student: Forward and backward of the student.
        cap: Forward and backward of all projectors.
        tail: Forward of TPP's proxies through the teacher's tail, and backward to its input.
        torch_counter: Count of torch's counter for the whole step; equal to `total` without grouped convolutions.
    """

    teacher: int
    student: int
    cap: int
    tail: int
    torch_counter: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.teacher + self.student + self.cap + self.tail


def step_flops(method: Method, batch: int | None = None) -> StepFlops:
    """Count the FLOPs of one forward and backward of `method`, with attention as two products.

    Args:
        method: The method. It is not changed; the step runs on a copy without memory.
        batch: Batch size of the counted step. A learned query is projected once per batch, so that its share per image
            falls with the batch size. Default: a size of which `feature_share` is a whole number of images, above 1.
    """
    batch = _divisible(method.feature_share) if batch is None else batch
    flops = on_copy(method, lambda copy: _Step(copy).count(batch), real=has_foreign_code(method))
    return StepFlops(**{part: round(flops[part] / batch) for part in StepFlops.__dataclass_fields__})


def _divisible(share: FeatureShare) -> int:
    """Return the smallest batch of which the share's rounded-down count is closest to the share.

    At least two images are compared, if possible: batch norm cannot train on one image with a map of one position.
    """
    enough = [images for images in range(2, 513) if share.count(images) > 1] or [512]
    return max(enough, key=lambda images: (share.count(images) / images, -images))


def _convolution_backward(*shapes: Any) -> int:
    """Count the FLOPs of `aten.convolution_backward` from its arguments, in which tensors are given as shapes.

    Each requested gradient takes as many FLOPs as the forward.
    """
    (output, image, weight), transposed, needs = shapes[:3], shapes[7], shapes[10]
    positions = image if transposed else output
    flops: int = 2 * prod(positions) * prod(weight[1:]) * (needs[0] + needs[1])
    return flops


class _Step:
    """Counts one step of a method part by part; the method is changed by it and must be a copy."""

    def __init__(self, method: Method) -> None:
        self.method = method.train()
        mapping = {aten.convolution_backward: self.convolution_backward}
        self.counter = FlopCounterMode(display=False, custom_mapping=mapping)
        self.counted_as_dense = 0  # FLOPs that torch counts beyond ours
        self.flops: Counter[str] = Counter()
        self.part = ""
        self.claimed: set[Node] = set()

    def count(self, batch: int) -> Counter[str]:
        """Return the FLOPs of each part for the whole batch."""
        method = self.method
        images, labels = inputs(method, batch)
        if method.teacher is not None:
            self.watch_tail(method.teacher)
        with self.counter, _separate_products(images.device):
            self.enter("teacher")
            teacher: TeacherOutputs | None = method.teach(images) if method.needs_teacher else None
            self.enter("student")
            student = method.student(images)
            self.claim("student", student.previous, student.last, student.logits)
            self.enter("cap")
            total = method.losses(student, teacher, labels).total
            self.claim("cap", total)
            total.backward()  # type: ignore[no-untyped-call]
            self.enter("")
        return self.flops + Counter(torch_counter=self.flops.total() + self.counted_as_dense)

    def convolution_backward(self, *shapes: Any, out_shape: Any) -> int:
        """Count the FLOPs of `aten.convolution_backward`, and note by how much torch's own count differs."""
        flops = _convolution_backward(*shapes)
        self.counted_as_dense += flop_registry[aten.convolution_backward](*shapes, out_val=out_shape) - flops
        return flops

    def watch_tail(self, teacher: Any) -> None:
        """Count the teacher's tail as a separate part."""
        run = teacher.tail

        def tail(tokens: Tensor) -> Tensor:
            self.claim("cap", tokens)
            self.enter("tail")
            proxies: Tensor = run(tokens)
            self.claim("tail", proxies)
            self.enter("cap")
            return proxies

        teacher.tail = tail

    def enter(self, part: str) -> None:
        """Start counting for `part`; what was counted since the last call belongs to the part entered then."""
        self.flops[self.part] += self.counter.get_total_flops() - self.flops.total()
        self.part = part

    def claim(self, part: str, *outputs: Tensor) -> None:
        """Count the backward of all autograd nodes that lead to `outputs`, unless already claimed, for `part`."""
        stack = [output.grad_fn for output in outputs]
        while stack:
            node = stack.pop()
            if node is None or node in self.claimed:
                continue
            self.claimed.add(node)
            node.register_prehook(lambda _: self.enter(part))
            stack += [following for following, _ in node.next_functions]
