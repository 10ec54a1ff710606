"""Image sources that the key `data` can name; one file per source."""

from scalekd.data.sources.joined import join
from scalekd.data.sources.opening import (
    absolute,
    open_data,
    read_label_free,
    read_split,
    read_splits,
    read_unlabelled,
)
from scalekd.data.sources.source import Source, in_order, with_filled_classes

__all__ = [
    "Source",
    "absolute",
    "in_order",
    "join",
    "open_data",
    "read_label_free",
    "read_split",
    "read_splits",
    "read_unlabelled",
    "with_filled_classes",
]
