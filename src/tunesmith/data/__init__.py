"""From rows to batches: sources, templates, tokens, the held-out split, sample order, micro-batches."""

from tunesmith.data.dataset import Dataset, TextSet, read_text, tokenize_text
from tunesmith.data.order import Batches, SampleOrder
from tunesmith.data.tokenize import TokenRow

__all__ = [
    "Batches",
    "Dataset",
    "SampleOrder",
    "TextSet",
    "TokenRow",
    "read_text",
    "tokenize_text",
]
