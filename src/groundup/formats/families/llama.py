"""LLaMA and those that differ from it by keys alone: Mistral, Qwen2, Qwen3, SmolLM3.

RMS norm before each sublayer, rotary positions, grouped-query attention, SwiGLU. Sources: Touvron et al. 2023; Jiang et
al. 2023 (a window); Qwen team 2024 and 2025 (biases on queries, keys and values; instead a norm of each head);
SmolLM3 (every fourth layer without positions).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from groundup.formats.family import Family
from groundup.formats.keys import Keys
from groundup.formats.rope_keys import read_rope, write_rope, write_ropes
from groundup.formats.rules import Rule, same, with_biases
from groundup.model.config import ModelConfig
from groundup.model.rotary import Rope
from groundup.model.specs import Activation, Attention, FeedForward, LayerSpec, Norm, NormKind, Projection, QueryKeyNorm

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

NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "layers.*.mixer_norm.weight": "model.layers.*.input_layernorm.weight",
    "layers.*.mixer.query.weight": "model.layers.*.self_attn.q_proj.weight",
    "layers.*.mixer.key.weight": "model.layers.*.self_attn.k_proj.weight",
    "layers.*.mixer.value.weight": "model.layers.*.self_attn.v_proj.weight",
    "layers.*.mixer.output.weight": "model.layers.*.self_attn.o_proj.weight",
    "layers.*.mixer.query_norm.weight": "model.layers.*.self_attn.q_norm.weight",
    "layers.*.mixer.key_norm.weight": "model.layers.*.self_attn.k_norm.weight",
    "layers.*.feed_forward_norm.weight": "model.layers.*.post_attention_layernorm.weight",
    "layers.*.feed_forward.gate.weight": "model.layers.*.mlp.gate_proj.weight",
    "layers.*.feed_forward.up.weight": "model.layers.*.mlp.up_proj.weight",
    "layers.*.feed_forward.down.weight": "model.layers.*.mlp.down_proj.weight",
    "final_norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}


def rules(config: ModelConfig) -> Sequence[Rule]:
    """The names that most decoders since LLaMA have."""
    return with_biases(same(NAMES))


def activation_name(activation: Activation) -> str:
    """The key's value for an activation: the first that stands for it."""
    return next(name for name, ours in ACTIVATIONS.items() if ours == activation)


def read_base(
    keys: Keys,
    family: str,
    *,
    norm: NormKind = "rms",
    eps: tuple[str, float] = ("rms_norm_eps", 1e-6),
    activation: str = "silu",
    activation_key: str = "hidden_act",
    theta: float = 10_000.0,
    fraction: float | None = None,
    original: int | None = None,
    positions: int = 2048,
    head_dim: int | None = None,
    kv_heads: int | None = None,
    tied: bool = False,
    rope: Rope | None = None,
    inner: Sequence[str] = ("intermediate_size",),
) -> ModelConfig:
    """A model of LLaMA's shape, all layers alike, from the keys that most decoders share.

    The arguments are what a family's own defaults are where a file does not say; eps: key and default; rope: already
    read, by a family whose layers differ in theirs; inner: names of the key for the inner width.
    """
    keys.without_effect("attention_dropout", "pretraining_tp")
    width, heads = keys.size("hidden_size"), keys.size("num_attention_heads")
    head_dim = keys.optional_size("head_dim", default=head_dim) or width // heads
    max_positions = keys.size("max_position_embeddings", default=positions)
    normed = Norm(norm, keys.positive(eps[0], default=eps[1]))
    layer = LayerSpec(
        Attention(
            heads,
            keys.optional_size("num_key_value_heads", default=kv_heads) or heads,
            head_dim,
            rope=rope or read_rope(keys, head_dim, max_positions, theta=theta, fraction=fraction, original=original),
        ),
        FeedForward(
            keys.size(*inner),
            keys.choice(activation_key, among=ACTIVATIONS, default=activation),
            gated=True,
        ),
        normed,
    )
    return ModelConfig(
        family=family,
        vocab_size=keys.size("vocab_size"),
        width=width,
        layers=(layer,) * keys.size("num_hidden_layers"),
        final_norm=normed,
        tied_head=keys.flag("tie_word_embeddings", default=tied),
        max_positions=max_positions,
    )


def write_base(config: ModelConfig, activation_key: str = "hidden_act") -> dict[str, Any]:
    """The keys that `read_base` reads, but for the norm's epsilon."""
    layer = config.layers[0]
    rope = next((one.attention.rope for one in config.layers if one.attention.rope is not None), None)
    return {
        "head_dim": layer.attention.head_dim,
        activation_key: activation_name(layer.network.activation),
        "hidden_size": config.width,
        "intermediate_size": layer.network.width,
        "max_position_embeddings": config.max_positions,
        "num_attention_heads": layer.attention.heads,
        "num_hidden_layers": len(config.layers),
        "num_key_value_heads": layer.attention.kv_heads,
        "tie_word_embeddings": config.tied_head,
        "vocab_size": config.vocab_size,
        **({} if rope is None else write_rope(rope, layer.attention.head_dim)),
    }


def with_layers(config: ModelConfig, **changes: Any) -> ModelConfig:
    """The configuration with these fields changed in every layer."""
    return replace(config, layers=tuple(replace(layer, **changes) for layer in config.layers))


def with_mixers(config: ModelConfig, **changes: Any) -> ModelConfig:
    """The configuration with these fields changed in every layer's attention."""
    return replace(
        config, layers=tuple(replace(layer, mixer=replace(layer.attention, **changes)) for layer in config.layers)
    )


def with_windows(config: ModelConfig, window: int | None, kinds: Sequence[str]) -> ModelConfig:
    """The configuration with a window in the layers whose kind is `sliding_attention`. Raises ValueError."""
    if len(kinds) != len(config.layers) or set(kinds) - {"sliding_attention", "full_attention"}:
        raise ValueError("`layer_types` must say sliding_attention or full_attention once for each layer")
    if window is None and "sliding_attention" in kinds:
        raise ValueError("`layer_types` has layers with a window, but `sliding_window` gives none")
    windows = [window if kind == "sliding_attention" else None for kind in kinds]
    layers = zip(config.layers, windows, strict=True)
    return replace(config, layers=tuple(replace(one, mixer=replace(one.attention, window=own)) for one, own in layers))


def write_windows(config: ModelConfig) -> dict[str, Any]:
    """`layer_types` and `sliding_window`."""
    windows = [layer.attention.window for layer in config.layers]
    return {
        "layer_types": ["full_attention" if window is None else "sliding_attention" for window in windows],
        "sliding_window": next((window for window in windows if window is not None), None),
    }


def with_ropes(config: ModelConfig, ropes: Mapping[str, Rope], kinds: Sequence[str]) -> ModelConfig:
    """The configuration with the rotary positions of each layer's kind."""
    layers = zip(config.layers, kinds, strict=True)
    return replace(
        config, layers=tuple(replace(one, mixer=replace(one.attention, rope=ropes[kind])) for one, kind in layers)
    )


def write_ropes_by_kind(config: ModelConfig, thetas: Mapping[str, tuple[str, float]]) -> dict[str, Any]:
    """The keys that `read_ropes` reads."""
    kinds = write_windows(config)["layer_types"]
    ropes = [layer.attention.rope for layer in config.layers]
    return write_ropes({kind: rope for kind, rope in zip(kinds, ropes, strict=True) if rope is not None}, thetas)


def _read_biases(keys: Keys, config: ModelConfig) -> ModelConfig:
    config = with_mixers(config, bias=ALL if keys.flag("attention_bias", default=False) else ())
    bias = keys.flag("mlp_bias", default=False)
    layers = (replace(one, feed_forward=replace(one.network, bias=bias)) for one in config.layers)
    return replace(config, layers=tuple(layers))


def _read_llama(keys: Keys) -> ModelConfig:
    return _read_biases(keys, read_base(keys, "llama"))


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[0]
    return write_base(config) | {
        "rms_norm_eps": layer.norm.eps,
        "attention_bias": bool(layer.attention.bias),
        "mlp_bias": layer.network.bias,
    }


def _read_mistral(keys: Keys) -> ModelConfig:
    config = read_base(keys, "mistral", positions=131_072)
    return with_mixers(config, window=keys.optional_size("sliding_window", default=4096))


def _write_mistral(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[0]
    return write_base(config) | {"rms_norm_eps": layer.norm.eps, "sliding_window": layer.attention.window}


def _read_qwen_windows(keys: Keys, config: ModelConfig) -> ModelConfig:
    """A window in the layers from `max_window_layers` on, or where `layer_types` says, if windows are used at all."""
    window = keys.optional_size("sliding_window", default=4096)
    window = window if keys.flag("use_sliding_window", default=False) else None
    first = keys.size("max_window_layers", default=28)
    kinds = keys.texts("layer_types") or [
        "sliding_attention" if window is not None and index >= first else "full_attention"
        for index in range(len(config.layers))
    ]
    return with_windows(config, window, kinds)


def _write_qwen(config: ModelConfig) -> dict[str, Any]:
    windows = write_windows(config)
    uses = windows["sliding_window"] is not None
    return write_base(config) | windows | {"rms_norm_eps": config.layers[0].norm.eps, "use_sliding_window": uses}


def _read_qwen2(keys: Keys) -> ModelConfig:
    config = read_base(keys, "qwen2", positions=32_768)
    return _read_qwen_windows(keys, with_mixers(config, bias=("query", "key", "value")))


def _read_qwen3(keys: Keys) -> ModelConfig:
    config = read_base(keys, "qwen3", positions=32_768, head_dim=128)
    bias = ALL if keys.flag("attention_bias", default=False) else ()
    return _read_qwen_windows(keys, with_mixers(config, bias=bias, query_key_norm=QueryKeyNorm(config.layers[0].norm)))


def _write_qwen3(config: ModelConfig) -> dict[str, Any]:
    return _write_qwen(config) | {"attention_bias": bool(config.layers[0].attention.bias)}


def _read_smollm3(keys: Keys) -> ModelConfig:
    config = _read_biases(keys, read_base(keys, "smollm3", positions=32_768, theta=2_000_000.0, tied=True))
    count = len(config.layers)
    interval = keys.size("no_rope_layer_interval", default=4)
    rotated = keys.optional_numbers("no_rope_layers") or [int((i + 1) % interval != 0) for i in range(count)]
    if len(rotated) != count:
        raise ValueError(f"`no_rope_layers` must have one number for each of the {count} layers")
    window = keys.optional_size("sliding_window")
    window = window if keys.flag("use_sliding_window", default=False) else None
    kinds = keys.texts("layer_types") or [
        "sliding_attention" if window is not None and not turns else "full_attention" for turns in rotated
    ]
    layers = zip(config.layers, rotated, strict=True)
    bare = tuple(one if turns else replace(one, mixer=replace(one.attention, rope=None)) for one, turns in layers)
    return with_windows(replace(config, layers=bare), window, kinds)


def _write_smollm3(config: ModelConfig) -> dict[str, Any]:
    windows = write_windows(config)
    uses = windows["sliding_window"] is not None
    rotated = [int(layer.attention.rope is not None) for layer in config.layers]
    return _write_llama(config) | windows | {"no_rope_layers": rotated, "use_sliding_window": uses}


LLAMA = Family("llama", "LlamaForCausalLM", _read_llama, _write_llama, rules, ("model.layers.*.rotary_emb.inv_freq",))
MISTRAL = Family("mistral", "MistralForCausalLM", _read_mistral, _write_mistral, rules)
QWEN2 = Family("qwen2", "Qwen2ForCausalLM", _read_qwen2, _write_qwen, rules)
QWEN3 = Family("qwen3", "Qwen3ForCausalLM", _read_qwen3, _write_qwen3, rules)
SMOLLM3 = Family("smollm3", "SmolLM3ForCausalLM", _read_smollm3, _write_smollm3, rules)
