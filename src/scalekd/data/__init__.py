"""Everything from the key `data` to batches: image sources, augmentation, loaders and the cache of teacher outputs.

Knows nothing of training: no optimiser, no loss, no run folder.
"""

from scalekd.data.augmentation import evaluation_transform, training_transform, whole_transform
from scalekd.data.corrupt import CorruptImages
from scalekd.data.loader import (
    Batch,
    CachedOutputs,
    EvaluationOrder,
    Key,
    ReplayDataset,
    TrainingStream,
    evaluation_loader,
    training_loader,
)
from scalekd.data.names import Names
from scalekd.data.outages import DataGoneError
from scalekd.data.overlap import refuse_output_among_images, refuse_shared, shared_images
from scalekd.data.randomness import derive_seed, seed_all, seeded
from scalekd.data.sources import (
    Source,
    absolute,
    in_order,
    join,
    open_data,
    read_label_free,
    read_split,
    read_splits,
    read_unlabelled,
    with_filled_classes,
)
from scalekd.data.split import Files, Split, Store

__all__ = [
    "Batch",
    "CachedOutputs",
    "CorruptImages",
    "DataGoneError",
    "EvaluationOrder",
    "Files",
    "Key",
    "Names",
    "ReplayDataset",
    "Source",
    "Split",
    "Store",
    "TrainingStream",
    "absolute",
    "derive_seed",
    "evaluation_loader",
    "evaluation_transform",
    "in_order",
    "join",
    "open_data",
    "read_label_free",
    "read_split",
    "read_splits",
    "read_unlabelled",
    "refuse_output_among_images",
    "refuse_shared",
    "seed_all",
    "seeded",
    "shared_images",
    "training_loader",
    "training_transform",
    "whole_transform",
    "with_filled_classes",
]
