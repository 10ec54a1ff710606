"""Predicts the cost of training a pair before a run starts: FLOPs, memory, hours, disk.

Predictions run the models on tensors without memory (`fake.py`); `measure.py` takes real steps to compare with. Knows
nothing about run folders or datasets.
"""

from scalekd.planner.cost import ModelCost, StepFlops, model_cost, step_flops
from scalekd.planner.estimate import USABLE, Estimate, estimate
from scalekd.planner.hours import DEVICES, Device, Hours, find_device, gpu_hours
from scalekd.planner.measure import Measurement, measure
from scalekd.planner.memory import (
    StepMemory,
    UnpredictableError,
    available_memory,
    held_memory,
    largest_batch,
    step_memory,
)
from scalekd.planner.storage import Storage, storage

__all__ = [
    "DEVICES",
    "USABLE",
    "Device",
    "Estimate",
    "Hours",
    "Measurement",
    "ModelCost",
    "StepFlops",
    "StepMemory",
    "Storage",
    "UnpredictableError",
    "available_memory",
    "estimate",
    "find_device",
    "gpu_hours",
    "held_memory",
    "largest_batch",
    "measure",
    "model_cost",
    "step_flops",
    "step_memory",
    "storage",
]
