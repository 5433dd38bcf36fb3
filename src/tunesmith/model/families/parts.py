"""The parts that a decoder is assembled from, as data: each layer's contents and their names on disk.

No torch here: `planning` counts these, `model/native` builds them, `share/gguf` names them. Names are those
of transformers' checkpoints, and PEFT's of the modules that an adapter sits on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.model.base_config import MOST_LAYERS

Activation = Literal["gelu", "swiglu"]


@dataclass(frozen=True)
class Norm:
    """A norm before a branch, or of each head: LayerNorm with a shift, RMSNorm without.

    gain: what its weight is multiplied with when it is read, in fp32.
    """

    name: str
    width: int
    eps: float
    shift: bool = False
    gain: float = 1.0

    @property
    def parameters(self) -> int:
        """Of weight and shift."""
        return self.width * (2 if self.shift else 1)


@dataclass(frozen=True)
class Projection:
    """Linear modules of one input, computed as one product. outputs: each module's name and width."""

    inputs: int
    outputs: Mapping[str, int]
    bias: bool = False

    @property
    def parameters(self) -> int:
        """Of weights and biases."""
        return sum(self.outputs.values()) * (self.inputs + self.bias)


@dataclass(frozen=True)
class Heads:
    """Attention heads: of queries, of keys and values (which divide them), and the channels of one.

    interleaved: q, k and v of each head in turn (BLOOM), instead of all q, all k, all v.
    """

    queries: int
    keys: int
    width: int
    interleaved: bool = False


@dataclass(frozen=True)
class Layer:
    """One decoder layer: attention, then the MLP, each on a normed copy of the residual stream.

    head_norms: RMSNorm of each head of q and of k. rope: which table of `Architecture.ropes` turns q and k;
    None for no positions (NoPE). window: how many tokens back a token sees, itself counted; None for all of
    its sample.
    """

    attention_norm: Norm
    qkv: Projection
    attention_output: Projection
    mlp_norm: Norm
    mlp_input: Projection
    mlp_output: Projection
    activation: Activation
    head_norms: tuple[Norm, Norm] | None = None
    rope: str | None = None
    window: int | None = None

    def projections(self) -> tuple[Projection, ...]:
        """All four, in the order of their use."""
        return self.qkv, self.attention_output, self.mlp_input, self.mlp_output

    def norms(self) -> tuple[Norm, ...]:
        """All, in the order of their use."""
        return self.attention_norm, *(self.head_norms or ()), self.mlp_norm


@dataclass(frozen=True)
class Rope:
    """A table of rotations: RoPE's scaling as in the config, and the share of a head's channels it turns."""

    scaling: str = "default"
    share: float = 1.0


@dataclass(frozen=True)
class Architecture:
    """A whole base. Shapes: V entries of the vocabulary, C channels of the residual stream.

    embedding: the name of the table [V, C]. tied: the head is that table. ropes: by name, see `Layer.rope`.
    alibi: attention is positioned by ALiBi's slopes (Press et al. 2021). embedding_scale, residual_scale:
    factors of the embedding and of what each branch adds. attention_scale: of q k^T; None for 1 / sqrt(head
    width). A factor of the logits is the gain of `final_norm`: (g x) W^T = g (x W^T).
    """

    model_type: str
    hidden: int
    vocabulary: int
    heads: Heads
    embedding: str
    layers: tuple[Layer, ...]
    final_norm: Norm
    tied: bool
    embedding_norm: Norm | None = None
    ropes: Mapping[str, Rope] | None = None
    alibi: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    attention_scale: float | None = None

    def projections(self) -> Iterator[Projection]:
        """Of all layers, in order."""
        return (projection for layer in self.layers for projection in layer.projections())

    def module_names(self) -> list[str]:
        """The full names of the linear modules inside the layers, in order."""
        return [name for projection in self.projections() for name in projection.outputs]

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The windows that occur, each once, in the order of the layers."""
        return tuple(dict.fromkeys(layer.window for layer in self.layers))

    @property
    def other_parameters(self) -> int:
        """Of all that is no linear module of a layer: embeddings, head, norms."""
        norms = [norm for layer in self.layers for norm in layer.norms()]
        norms += [self.final_norm, *([self.embedding_norm] if self.embedding_norm else [])]
        tables = 1 if self.tied else 2
        return self.vocabulary * self.hidden * tables + sum(norm.parameters for norm in norms)


@dataclass(frozen=True)
class Gguf:
    """A family's place in GGUF. architecture: llama.cpp's name. body: the prefix of the body's names.

    row_orders: how llama.cpp wants the rows of a module, by the module's last name: `rope_pairs` (it turns
    neighbouring channels, transformers the two halves of a head), `qkv_apart` (BLOOM: all q first, then k,
    then v). lacks: what of transformers' config object llama.cpp's code of the architecture has no place for,
    if anything.
    """

    architecture: str
    body: str
    row_orders: Mapping[str, Literal["rope_pairs", "qkv_apart"]]
    lacks: Callable[[Any], str | None] = lambda config: None


@dataclass(frozen=True)
class IntOrNull:
    """An integer that a config.json may leave out, or set to null."""

    default: int | None


def typed(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values named in `defaults`, as a config.json has them, else as transformers takes them.

    A default is a value, whose type is the value's (a float may be written as an integer), an `IntOrNull`, or
    a type: then the value must be there. Raises KeyError for what is missing, TypeError naming what is of
    another type.
    """
    values = {}
    for name, default in defaults.items():
        if isinstance(default, IntOrNull):
            value = config.get(name, default.default)
            fits = value is None or type(value) is int
        else:
            required = isinstance(default, type)
            value = config[name] if required else config.get(name, default)
            kind = default if required else type(default)
            if kind is float and type(value) is int:
                value = float(value)
            fits = type(value) is kind
        if not fits:
            raise TypeError(f"{name}: it is {value!r}")
        values[name] = value
    return values


def require_layers(layers: int) -> int:
    """The number of layers. Raises ValueError where no model has as many."""
    if not 1 <= layers <= MOST_LAYERS:
        raise ValueError(f"number of layers: it is {layers}")
    return layers


def require_heads(hidden: int, heads: int, keys: int, width: int | None) -> Heads:
    """The heads. Raises ValueError for widths that do not divide."""
    if min(hidden, heads, keys) < 1 or (width is None and hidden % heads) or heads % keys:
        raise ValueError(f"heads: {hidden} channels do not divide into {heads} heads, {keys} of keys")
    return Heads(heads, keys, width if width is not None else hidden // heads)
