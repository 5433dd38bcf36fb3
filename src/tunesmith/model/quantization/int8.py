"""LLM.int8 (Dettmers et al. 2022, https://arxiv.org/abs/2208.07339): int8 rows, outlier columns apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.model.libraries import import_bitsandbytes
from tunesmith.model.quantization.way import Parts, Way

if TYPE_CHECKING:
    import torch

#: How many values of a weight are quantised at once: 64 MiB in fp32.
_VALUES_AT_ONCE = 1 << 24


class Int8(Way):
    """A row's values as multiples of its largest / 127 (eq. 3). Parts: q int8 [O, I], scale fp32 [O]."""

    name = "int8"
    about = "LLM.int8"
    also_called = ("load_in_8bit",)
    size_share = 0.6
    tensors_beside = r"SCB|weight_format"
    loading_code = "quantization_config=BitsAndBytesConfig(load_in_8bit=True)"
    loading_import = "BitsAndBytesConfig"

    def value_bytes(self, computed_bytes: int) -> float:
        """One; the scales of rows do not count."""
        return 1.0

    def keeps(self, config: Mapping[str, Any]) -> bool:
        """By bitsandbytes' own flag."""
        return config.get("load_in_8bit") is True

    def fails_on(self, config: Mapping[str, Any], device: str) -> str | None:
        """Latent attention on a CPU; Gemma 3n."""
        kind = str(config["model_type"])
        if device == "cpu" and (config.get("kv_lora_rank")
                                or kind.startswith(("deepseek_v2", "deepseek_v3"))):
            return ("bitsandbytes' CPU routine does not take what its latent attention hands over while "
                    "answers are made")
        return "transformers cannot quantise Gemma 3n in it" if kind.startswith("gemma3n") else None

    def transformers_config(self, dtype: torch.dtype) -> Any:
        """8-bit weights; the head and the embeddings stay in `dtype`."""
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(load_in_8bit=True)

    def prepare(self, model: torch.nn.Module) -> None:
        """Silence each layer's warning about an input that is not fp16: that cast is LLM.int8 itself."""
        import logging

        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)

    def is_whole(self, layer: torch.nn.Module) -> bool | None:
        """Whether bitsandbytes' layer has int8 values."""
        import torch

        if not any(each.__name__ == "Linear8bitLt" for each in type(layer).__mro__):
            return None
        weight: Any = layer.weight
        return getattr(weight, "CB", None) is not None or weight.dtype == torch.int8

    def count(self, parameter: torch.nn.Parameter) -> int | None:
        """A value a byte."""
        import torch

        return parameter.numel() if parameter.dtype == torch.int8 else None

    def layer(self, inputs: int, outputs: int) -> torch.nn.Module:
        """bitsandbytes', with the paper's threshold for outliers."""
        layer: torch.nn.Module = import_bitsandbytes().nn.Linear8bitLt(
            inputs, outputs, bias=False, has_fp16_weights=False, threshold=6.0)
        return layer

    def quantise(self, weight_OI: torch.Tensor) -> dict[str, torch.Tensor]:
        """By bitsandbytes' own rounding, which starts from fp16; see `quantise_rows`."""
        q_OI, absmax_O = quantise_rows(weight_OI)
        return {"q": q_OI, "scale": absmax_O / 127}

    def fill(self, parts: Parts, out_OI: torch.Tensor) -> None:
        """q * scale."""
        from tunesmith.model.native.kernels.dequantize import dequantize_int8

        dequantize_int8(parts["q"], parts["scale"], out_OI)

    def side_by_side(self, each: Sequence[Parts]) -> dict[str, torch.Tensor]:
        """Rows below each other."""
        import torch

        return {name: torch.cat([parts[name] for parts in each]) for name in ("q", "scale")}

    def int8_rows(self, parts: Parts) -> tuple[torch.Tensor, torch.Tensor]:
        """As it is."""
        return parts["q"], parts["scale"]


def quantise_rows(weight_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(int8 [O, I], each row's largest magnitude in fp32 [O]).

    A row of zeros, or with what fp16 cannot hold, becomes zeros. To the bit what
    bitsandbytes.functional.int8_vectorwise_quant does on a CPU, without its import, which takes seconds. Its
    CUDA kernel multiplies in another order, and may differ by one where a value lies halfway between two
    integers.
    """
    import torch

    q_OI = torch.empty(weight_OI.shape, dtype=torch.int8, device=weight_OI.device)
    absmax_O = torch.empty(weight_OI.shape[0], device=weight_OI.device)
    for rows in range(0, len(q_OI), step := max(1, _VALUES_AT_ONCE // weight_OI.shape[1])):
        half_RI = weight_OI[rows:rows + step].to(torch.float16)
        absmax_R = half_RI.abs().amax(1).float()
        # A scale of 127 / 0 or 127 / infinity makes NaN, whose integer each machine decides.
        q_OI[rows:rows + step] = (half_RI * (127.0 / absmax_R)[:, None]).round_().nan_to_num_(0.0)
        absmax_O[rows:rows + step] = absmax_R
    return q_OI, absmax_O
