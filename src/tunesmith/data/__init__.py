"""From rows to batches: sources, templates, tokens, the held-out split, sample order, micro-batches."""

from tunesmith.data.dataset import read_text, tokenize_text, tokens_of
from tunesmith.data.order import Batches, SampleOrder
from tunesmith.data.sets import Dataset, Texts, TextSet
from tunesmith.data.tokenize import TokenRow

__all__ = [
    "Batches",
    "Dataset",
    "SampleOrder",
    "TextSet",
    "Texts",
    "TokenRow",
    "read_text",
    "tokenize_text",
    "tokens_of",
]
