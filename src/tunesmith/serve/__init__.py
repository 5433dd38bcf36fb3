"""Answers from a model: token-level generation."""

from tunesmith.serve.answers import TextAnswer, answer_prompts, encode_prompt

__all__ = ["TextAnswer", "answer_prompts", "encode_prompt"]
