"""LLM.int8 (Dettmers et al. 2022, https://arxiv.org/abs/2208.07339): int8 rows, outlier columns apart."""

from __future__ import annotations

import logging

import torch
from transformers import BitsAndBytesConfig


def config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """8-bit weights; the head and the embeddings stay in `dtype`."""
    return BitsAndBytesConfig(load_in_8bit=True)


def prepare(model: torch.nn.Module) -> None:
    """Silence the note that each layer prints when its input is not fp16; the cast is what LLM.int8 is."""
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
