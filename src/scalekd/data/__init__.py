"""Sources, augmentation and loaders."""

from scalekd.data.augmentation import evaluation_transform, training_transform
from scalekd.data.folder import Split, read_label_free, read_split, read_splits, read_unlabelled
from scalekd.data.loader import (
    Batch,
    CorruptImages,
    Key,
    ReplayDataset,
    TrainingStream,
    evaluation_loader,
    training_loader,
)
from scalekd.data.replay import derive_seed, seeded

__all__ = [
    "Batch",
    "CorruptImages",
    "Key",
    "ReplayDataset",
    "Split",
    "TrainingStream",
    "derive_seed",
    "evaluation_loader",
    "evaluation_transform",
    "read_label_free",
    "read_split",
    "read_splits",
    "read_unlabelled",
    "seeded",
    "training_loader",
    "training_transform",
]
