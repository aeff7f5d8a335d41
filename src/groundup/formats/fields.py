"""The fields that families have in common, for their maps of keys (`config_map.py`), which say what each calls them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from groundup.formats.config_map import Facts, Field, PerLayer, norm_of
from groundup.formats.keys import Keys
from groundup.formats.rope_keys import read_rope, read_ropes, write_rope, write_ropes
from groundup.model.config import LearnedPositions, StackConfig
from groundup.model.specs import Activation, Attention, Experts, LatentAttention, Projection, QueryKeyNorm

FULL, SLIDING = "full_attention", "sliding_attention"
ALL: tuple[Projection, ...] = ("query", "key", "value", "output")
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu_squared",
    "quick_gelu": "quick_gelu",
    "tanh": "tanh",
}


def activation_name(activation: Activation) -> str:
    """The key's value for an activation: the first that stands for it."""
    return next(name for name, ours in ACTIVATIONS.items() if ours == activation)


def gpt_activation_name(activation: Activation) -> str:
    """The same with the name that GPT-2's file and T5's have for the tanh approximation."""
    return "gelu_new" if activation == "gelu_tanh" else activation_name(activation)


def biases(*projections: Projection) -> Field:
    """A switch for the biases of these projections of attention."""
    return Field("mixer.bias", Keys.flag, ours=lambda on: projections if on else (), theirs=bool)


def normed_heads(**traits: Any) -> Callable[[Facts], QueryKeyNorm]:
    """A norm of queries and keys like those of the layers."""
    return lambda facts: QueryKeyNorm(norm_of(facts), **traits)


def query_key_norm(**traits: Any) -> Field:
    """A switch for such a norm."""
    kind = normed_heads(**traits)
    return Field("mixer.query_key_norm", Keys.flag, ours=lambda on: kind if on else None, theirs=lambda one: bool(one))


def learned_positions(offset: int = 0) -> Callable[[Facts], LearnedPositions]:
    """A table of all positions; offset: rows before that of position 0."""
    return lambda facts: LearnedPositions(facts["max_positions"], offset)


WIDTH = Field("width", Keys.size)
LAYERS = Field("layers", Keys.size, theirs=len)
VOCABULARY = Field("vocab_size", Keys.size)
POSITIONS = Field("max_positions", Keys.size)
TIED = Field("tied_head", Keys.flag)
EPS = Field("norm.eps", Keys.positive)
HEADS = Field("mixer.heads", Keys.size)
# Null, they are as many as heads, and what each of these has of the width.
KV_HEADS = Field("mixer.kv_heads", Keys.optional_size, default=None, null_means=lambda facts: facts["mixer.heads"])
SAID_KV_HEADS = Field("mixer.kv_heads", Keys.size)
HEAD_DIM = Field(
    "mixer.head_dim",
    Keys.optional_size,
    default=None,
    null_means=lambda facts: facts["width"] // facts["mixer.heads"],
)
WINDOW = Field("mixer.window", Keys.optional_size)
BIASES = biases(*ALL)
INNER = Field("feed_forward.width", Keys.size)
# Null, it is four times the width.
WIDER = Field("feed_forward.width", Keys.optional_size, default=None, null_means=lambda facts: 4 * facts["width"])
ACTIVATION = Field("feed_forward.activation", partial(Keys.choice, among=ACTIVATIONS), theirs=activation_name)
GPT_ACTIVATION = replace(ACTIVATION, theirs=gpt_activation_name)
NETWORK_BIAS = Field("feed_forward.bias", Keys.flag)
EXPERTS = Field("router.experts", Keys.size)
CHOSEN = Field("router.chosen", Keys.size)
NORMALISED = Field("router.normalised", Keys.flag)
ROUTER_SCALE = Field("router.scale", Keys.positive)
EXPERT_WIDTH = Field("expert.width", Keys.size)
SHARED_WIDTH = Field("shared.width", Keys.size)
SOFTCAP = Field("mixer.softcap", Keys.optional_positive)
LOGIT_SCALE = Field("logit_scale", Keys.positive)
LOGIT_SOFTCAP = Field("logit_softcap", Keys.optional_positive)


@dataclass(frozen=True)
class EqualHeads:
    """How many heads make up the width, each with keys and values of its own; width: the key for that."""

    width: str

    def read(self, key: str, keys: Keys, facts: Facts) -> None:
        width, heads = facts["width"], keys.size(key)
        if width % heads:
            raise ValueError(f"`{self.width}` ({width}) must be a multiple of `{key}` ({heads})")
        facts |= {"mixer.heads": heads, "mixer.kv_heads": heads, "mixer.head_dim": width // heads}

    def write(self, key: str, config: StackConfig) -> dict[str, Any]:
        return HEADS.write(key, config)


@dataclass(frozen=True)
class AllBiases:
    """A switch for all biases of the layers, of their attention and of their networks."""

    default: bool

    def read(self, key: str, keys: Keys, facts: Facts) -> None:
        for field in (BIASES, NETWORK_BIAS):
            field.usually(self.default).read(key, keys, facts)

    def write(self, key: str, config: StackConfig) -> dict[str, Any]:
        return NETWORK_BIAS.write(key, config)


@dataclass(frozen=True)
class Rotary:
    """The keys of rotary positions, the same in all layers that have any; the arguments are those of `read_rope`."""

    theta: float = 10_000.0
    fraction: float | None = None
    original: int | None = None
    interleaved: bool = False
    reversed: bool = False

    def read(self, key: str, keys: Keys, facts: Facts) -> None:
        facts["mixer.rope"] = read_rope(keys, facts["mixer.head_dim"], facts["max_positions"], **vars(self))

    def write(self, key: str, config: StackConfig) -> dict[str, Any]:
        mixers = (layer.mixer for layer in config.layers)
        attention = (one for one in mixers if isinstance(one, Attention | LatentAttention))
        rotated = ((one.rope, one.head_dim) for one in attention if one.rope is not None)
        # Absent, it would mean the default.
        share = {} if self.fraction in (None, 1.0) else {"partial_rotary_factor": 1.0}
        return share | next((write_rope(*one) for one in rotated), {})


@dataclass(frozen=True)
class RotaryByKind:
    """The keys of rotary positions that depend on whether a layer has a window; thetas: see `read_ropes`."""

    thetas: Mapping[str, tuple[str, float]]

    def read(self, key: str, keys: Keys, facts: Facts) -> None:
        ropes = read_ropes(keys, facts["mixer.head_dim"], facts["max_positions"], self.thetas)
        facts["mixer.rope"] = lambda facts: PerLayer(tuple(ropes[_kind(one)] for one in facts["mixer.window"].values))

    def write(self, key: str, config: StackConfig) -> dict[str, Any]:
        mixers = [layer.attention for layer in config.layers]
        return write_ropes({_kind(one.window): one.rope for one in mixers if one.rope is not None}, self.thetas)


@dataclass(frozen=True)
class OtherMixers:
    """`layer_types` of a family in which some layers have another mixer than attention.

    kind: what the key calls them; part: their place among the facts; usual: which they are where it is absent.
    """

    kind: str
    part: str
    usual: Callable[[Keys, Facts], Sequence[bool]]

    def read(self, key: str, keys: Keys, facts: Facts) -> None:
        kinds = read_layer_types(keys, facts, self.kind, self.usual(keys, facts))
        facts["layer.mixer"] = PerLayer(tuple("mixer" if kind == FULL else self.part for kind in kinds))

    def write(self, key: str, config: StackConfig) -> dict[str, Any]:
        return {key: [FULL if isinstance(layer.mixer, Attention) else self.kind for layer in config.layers]}


@dataclass(frozen=True)
class DenseFirst:
    """How many layers have no experts, the first ones."""

    default: int

    def read(self, key: str, keys: Keys, facts: Facts) -> None:
        dense = keys.count(key, default=self.default)
        facts["layer.sparse"] = PerLayer(tuple(index >= dense for index in range(facts["layers"])))

    def write(self, key: str, config: StackConfig) -> dict[str, Any]:
        return {key: sum(not isinstance(layer.feed_forward, Experts) for layer in config.layers)}


@dataclass(frozen=True)
class Windows:
    """`layer_types` and `sliding_window`: without the former, of so many layers all but the last have a window.

    window: its default; period, period_key: of how many layers, and the key for that if there is one.
    """

    window: int | None
    period: int
    period_key: str | None = None

    def read(self, key: str, keys: Keys, facts: Facts) -> None:
        period = self.period if self.period_key is None else keys.size(self.period_key, default=self.period)
        windowed = [bool((index + 1) % period) for index in range(facts["layers"])]
        read_windows(keys, facts, keys.optional_size(key, default=self.window), windowed)

    def write(self, key: str, config: StackConfig) -> dict[str, Any]:
        written = write_windows(config)
        # `transformers` wants a number even where no layer uses it.
        return written | {key: written[key] or POSITIONS.write(key, config)[key]}


def read_windows(keys: Keys, facts: Facts, window: int | None, windowed: Sequence[bool]) -> None:
    """A window in the layers that `layer_types` names, or else in those of `windowed`. Raises ValueError."""
    kinds = read_layer_types(keys, facts, SLIDING, windowed)
    if window is None and SLIDING in kinds:
        raise ValueError("`layer_types` has layers with a window, but `sliding_window` gives none")
    facts["mixer.window"] = PerLayer(tuple(window if kind == SLIDING else None for kind in kinds))


def read_layer_types(keys: Keys, facts: Facts, other: str, usual: Sequence[bool]) -> list[str]:
    """`layer_types`, which are `full_attention` or another kind, by default that where `usual` is true."""
    kinds = keys.texts("layer_types") or [other if here else FULL for here in usual]
    if len(kinds) != facts["layers"] or set(kinds) - {other, FULL}:
        raise ValueError(f"`layer_types` must say {other} or full_attention once for each layer")
    return kinds


def write_windows(config: StackConfig) -> dict[str, Any]:
    """`layer_types` and `sliding_window`."""
    windows = [layer.attention.window for layer in config.layers]
    return {
        "layer_types": [_kind(window) for window in windows],
        "sliding_window": next((window for window in windows if window is not None), None),
    }


def _kind(window: int | None) -> str:
    return FULL if window is None else SLIDING
