"""4-bit NormalFloat, double-quantised (QLoRA, Dettmers et al. 2023, https://arxiv.org/abs/2305.14314)."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tunesmith.model.libraries import import_bitsandbytes
from tunesmith.model.quantization.way import Parts, Way

if TYPE_CHECKING:
    import torch

#: Values that share a scale.
_BLOCK = 64


class Nf4(Way):
    """Two values a byte, in blocks of 64 with a scale, which is quantised itself.

    Parts: bitsandbytes' packed codes, the table of values, and the scales as codes, table, nested scales and
    offset.
    """

    name = "nf4"
    about = "double-quantised"
    also_called = ("load_in_4bit",)
    size_share = 0.35
    tensors_beside = r"absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*"
    loading_code = ('quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", '
                    "bnb_4bit_use_double_quant=True)")
    loading_import = "BitsAndBytesConfig"

    def value_bytes(self, computed_bytes: int) -> float:
        """Half of one, and a scale for each block, counted as if it were kept in fp32."""
        return 0.5 + 4 / _BLOCK

    def keeps(self, config: Mapping[str, Any]) -> bool:
        """By bitsandbytes' own words."""
        return config.get("load_in_4bit") is True and config.get("bnb_4bit_quant_type") == "nf4"

    def transformers_config(self, dtype: torch.dtype) -> Any:
        """4-bit weights that are turned back to `dtype` for every product."""
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                  bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)

    def prepare(self, model: torch.nn.Module) -> None:
        """Keep every layer on the one exact path on CPU.

        On CPUs with AVX512-BF16 bitsandbytes repacks the weights in place when a layer is first called
        outside training, computes in bf16 from then on, and fails for widths that 32 does not divide.
        Training and judging must see the same weights, so that shortcut is declined.
        """
        kind = import_bitsandbytes().nn.Linear4bit
        for layer in model.modules():
            if isinstance(layer, kind):
                layer.support_avx512bf16_for_cpu = False
                state = layer.weight.quant_state
                if (state is not None and layer.weight.device.type == "cpu"
                        and layer.in_features % state.blocksize):
                    layer.forward = functools.partial(_as_one_row, layer)

    def is_whole(self, layer: torch.nn.Module) -> bool | None:
        """Whether bitsandbytes' layer has its scales."""
        if not any(each.__name__ == "Linear4bit" for each in type(layer).__mro__):
            return None
        return getattr(layer.weight, "quant_state", None) is not None

    def count(self, parameter: torch.nn.Parameter) -> int | None:
        """As bitsandbytes' state of it says."""
        import torch

        state: Any = getattr(parameter, "quant_state", None)
        return torch.Size(state.shape).numel() if state and state.quant_type == "nf4" else None

    def layer(self, inputs: int, outputs: int) -> torch.nn.Module:
        """bitsandbytes', computing in fp32."""
        import torch

        layer: torch.nn.Module = import_bitsandbytes().nn.Linear4bit(
            inputs, outputs, bias=False, quant_type="nf4", compute_dtype=torch.float32)
        return layer

    def quantise(self, weight_OI: torch.Tensor) -> dict[str, torch.Tensor]:
        """By bitsandbytes."""
        packed, state = import_bitsandbytes().functional.quantize_4bit(
            weight_OI.contiguous(), blocksize=_BLOCK, compress_statistics=True, quant_type="nf4")
        return {"packed": packed.flatten(), "code": state.code.float(), "absmax_q": state.absmax,
                "offset": state.offset, "absmax_code": state.state2.code.float(),
                "absmax_nested": state.state2.absmax}

    def fill(self, parts: Parts, out_OI: torch.Tensor) -> None:
        """code[nibble] * absmax of its block."""
        from tunesmith.model.native.kernels.dequantize import dequantize_nf4
        from tunesmith.model.native.kernels.formats import Nf4Absmax

        absmax = Nf4Absmax(parts["absmax_q"], parts["absmax_code"], parts["absmax_nested"], parts["offset"])
        dequantize_nf4(parts["packed"], parts["code"], absmax, out_OI)


def _as_one_row(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """x W^T + b of a layer on the CPU whose rows do not end where the blocks of the format end.

    bitsandbytes' AVX512 routine goes row by row and takes the wrong scale as soon as a block spans two rows
    (0.50.2: errors as large as the weights, at widths that 32 divides and the blocksize does not). Told that
    the weight is one long row it is right.
    """
    import torch

    bitsandbytes = import_bitsandbytes()
    bitsandbytes.nn.modules.fix_4bit_weight_quant_state_from_module(layer)
    flat = copy.copy(layer.weight.quant_state)
    shape, flat.shape = flat.shape, torch.Size([flat.shape.numel()])
    weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data.reshape(1, -1), flat).reshape(shape)
    dtype = layer.compute_dtype or x.dtype
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return torch.nn.functional.linear(x.to(dtype), weight.to(dtype), bias).to(x.dtype)
