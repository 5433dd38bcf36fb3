"""Adapters and merged models as GGUF, which llama.cpp and Ollama read, and Ollama's Modelfile.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from tunesmith.share.gguf.adapter import write_adapter_gguf
from tunesmith.share.gguf.model import check_model_gguf, write_model_gguf
from tunesmith.share.gguf.modelfile import modelfile

__all__ = ["check_model_gguf", "modelfile", "write_adapter_gguf", "write_model_gguf"]
