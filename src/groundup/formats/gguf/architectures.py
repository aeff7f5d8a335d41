"""The architectures of llama.cpp, as data: their metadata keys ⇄ `ModelConfig`.

`read` builds what llama.cpp computes for a file. By that a model is judged before it is written, too: what its keys,
read again, do not give back, llama.cpp would not compute. Sources: its src/models/*.cpp for what is computed, its
convert_hf_to_gguf.py for how it is stored. A new architecture is an entry in `ARCHITECTURES`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from groundup.formats.families import llama
from groundup.formats.families.mixtral import experts_of
from groundup.formats.gguf import layout
from groundup.formats.gguf.encoders import read_bert, write_bert
from groundup.formats.gguf.model_keys import LAYER_EPS, QUERY_KEY_VALUE, Tensors, all_width, read_base, write_base
from groundup.formats.gguf.ropes import read_rope, read_scaling, write_rope
from groundup.formats.keys import Keys
from groundup.formats.rules import Rule
from groundup.model.config import LearnedPositions, ModelConfig
from groundup.model.rotary import LinearScaling, Rope
from groundup.model.specs import Experts, QueryKeyNorm, Router

WINDOW, PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"


@dataclass(frozen=True)
class Architecture:
    """One `general.architecture`.

    families: those of ours that are written as it; as what a file is read, `read` decides.
    read / write: its own keys, without its name in front, ⇄ `ModelConfig`; `read` raises ValueError or KeyError, naming
        the key.
    rules: the names and layout of its tensors, for a configuration.
    encodes: what leaves the layers is all that llama.cpp computes; a head is left out.
    """

    name: str
    families: tuple[str, ...]
    read: Callable[[Keys, Tensors], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    rules: Callable[[ModelConfig], Sequence[Rule]]
    encodes: bool = False


def _write_rotary(config: ModelConfig) -> dict[str, Any]:
    mixer = config.layers[0].attention
    return write_base(config) | write_rope(mixer.rope, mixer.head_dim)


def _read_router(keys: Keys, normalised: bool) -> Router:
    keys.fixed(expert_weights_norm=normalised, expert_weights_scale=1.0, expert_gating_func=1, expert_group_count=1)
    return Router(keys.size("expert_count"), keys.size("expert_used_count"), normalised=normalised)


def _write_router(config: ModelConfig) -> dict[str, Any]:
    router = experts_of(config).router
    return _write_rotary(config) | {"expert_count": router.experts, "expert_used_count": router.chosen}


def _read_llama(keys: Keys, tensors: Tensors) -> ModelConfig:
    """LLaMA and Mistral, or Mixtral where there are experts."""
    rope = read_rope(keys, tensors.frequencies)
    if keys.count("expert_count", default=0):
        router = _read_router(keys, normalised=True)
        config = read_base(keys, tensors, "mixtral", rope=rope)
        return llama.with_layers(config, feed_forward=Experts(config.layers[0].network, router))
    keys.fixed(expert_used_count=0)
    bias = tuple(projection for projection, name in layout.BIASES.items() if tensors.have(name))
    config = read_base(keys, tensors, "llama", rope=rope, bias=bias)
    network = replace(config.layers[0].network, bias=tensors.have("blk.0.ffn_up.bias"))
    return llama.with_layers(config, feed_forward=network)


def _read_qwen2(keys: Keys, tensors: Tensors) -> ModelConfig:
    return all_width(read_base(keys, tensors, "qwen2", rope=read_rope(keys, None), bias=QUERY_KEY_VALUE))


def _read_qwen3(keys: Keys, tensors: Tensors) -> ModelConfig:
    config = read_base(keys, tensors, "qwen3", rope=read_rope(keys, None))
    return llama.with_mixers(config, query_key_norm=QueryKeyNorm(config.layers[0].norm))


def _read_qwen2_moe(keys: Keys, tensors: Tensors) -> ModelConfig:
    """llama.cpp wants a head of its own here."""
    rope, router = read_rope(keys, None), _read_router(keys, normalised=False)
    config = all_width(read_base(keys, tensors, "qwen2_moe", rope=rope, bias=QUERY_KEY_VALUE, tied=False))
    expert = replace(config.layers[0].network, width=keys.size("expert_feed_forward_length"))
    shared = replace(expert, width=keys.size("expert_shared_feed_forward_length"))
    return llama.with_layers(config, feed_forward=Experts(expert, router, shared, shared_gate=True))


def _write_qwen2_moe(config: ModelConfig) -> dict[str, Any]:
    shared = experts_of(config).shared
    assert shared is not None
    return _write_qwen3_moe(config) | {"expert_shared_feed_forward_length": shared.width}


def _read_qwen3_moe(keys: Keys, tensors: Tensors) -> ModelConfig:
    router = _read_router(keys, normalised=True)
    config = replace(_read_qwen3(keys, tensors), family="qwen3_moe")
    expert = replace(config.layers[0].network, width=keys.size("expert_feed_forward_length"))
    return llama.with_layers(config, feed_forward=Experts(expert, router))


def _write_qwen3_moe(config: ModelConfig) -> dict[str, Any]:
    return _write_router(config) | {"expert_feed_forward_length": experts_of(config).expert.width}


def _read_any_gemma(keys: Keys, tensors: Tensors, family: str, rope: Rope, tied: bool | None = True) -> ModelConfig:
    config = read_base(keys, tensors, family, rope=rope, norm="rms_plus_one", activation="gelu_tanh", tied=tied)
    return replace(config, embedding_scale=config.width**0.5)


def _read_gemma(keys: Keys, tensors: Tensors) -> ModelConfig:
    return _read_any_gemma(keys, tensors, "gemma", read_rope(keys, None))


def _read_sandwich(
    keys: Keys,
    tensors: Tensors,
    family: str,
    rope: Rope,
    *,
    window: int | None,
    period: int,
    exception: int,
    tied: bool | None = True,
) -> tuple[ModelConfig, list[str]]:
    """What Gemma 2 and 3 share, and the kind of each layer.

    window, period: defaults; exception: the number of layers of the one model that scales its scores by what a head has
    of the width.
    """
    config = _read_any_gemma(keys, tensors, family, rope, tied)
    window, count = keys.optional_size(WINDOW, default=window), len(config.layers)
    seen = keys.flags(PATTERN, default=[bool((index + 1) % period) for index in range(count)])
    if len(seen) != count:
        raise ValueError(f"`{PATTERN}` must have one entry for each of the {count} layers, not {len(seen)}")
    kinds = ["sliding_attention" if window is not None and here else "full_attention" for here in seen]
    config = llama.with_windows(config, window, kinds)
    mixer = config.layers[0].attention
    of_head = config.width // mixer.heads if len(config.layers) == exception else mixer.head_dim
    return llama.with_layers(llama.with_mixers(config, scale=of_head**-0.5), placement="sandwich"), kinds


def _write_sandwich(config: ModelConfig) -> dict[str, Any]:
    windows = [layer.attention.window for layer in config.layers]
    seen = next((window for window in windows if window is not None), None)
    keys = _write_rotary(config) | {PATTERN: [window is not None for window in windows]}
    return keys if seen is None else keys | {WINDOW: seen}


def _read_gemma2(keys: Keys, tensors: Tensors) -> ModelConfig:
    rope = read_rope(keys, None)
    config, kinds = _read_sandwich(keys, tensors, "gemma2", rope, window=4096, period=2, exception=46)
    if "sliding_attention" not in kinds:
        raise ValueError("llama.cpp wants a layer with a window in gemma2")
    keys.fixed(**{"rope.freq_base_swa": rope.theta})
    return replace(
        llama.with_mixers(config, softcap=keys.positive("attn_logit_softcapping", default=50.0)),
        logit_softcap=keys.positive("final_logit_softcapping", default=30.0),
    )


def _write_gemma2(config: ModelConfig) -> dict[str, Any]:
    caps = {
        "attn_logit_softcapping": config.layers[0].attention.softcap,
        "final_logit_softcapping": config.logit_softcap,
    }
    return _write_sandwich(config) | {name: cap for name, cap in caps.items() if cap is not None}


def _read_gemma3(keys: Keys, tensors: Tensors) -> ModelConfig:
    theta, scaling = keys.positive("rope.freq_base", default=10_000.0), read_scaling(keys)
    if not isinstance(scaling, LinearScaling | None):
        raise ValueError("`rope.scaling.type` must be linear or none")
    local = Rope(keys.positive("rope.freq_base_swa", default=10_000.0))
    ropes = {"full_attention": Rope(theta, scaling=scaling), "sliding_attention": local}
    config, kinds = _read_sandwich(
        keys, tensors, "gemma3_text", ropes["full_attention"], window=None, period=6, exception=62, tied=None
    )
    config = llama.with_mixers(config, query_key_norm=QueryKeyNorm(config.layers[0].norm))
    config = replace(config, logit_softcap=keys.optional_positive("final_logit_softcapping"))
    return llama.with_ropes(config, ropes, kinds)


def _write_gemma3(config: ModelConfig) -> dict[str, Any]:
    mixers = [layer.attention for layer in config.layers]
    full = next((mixer for mixer in mixers if mixer.window is None), mixers[0])
    local = next((mixer for mixer in mixers if mixer.window is not None), full)
    own = {} if local.rope is None else {"rope.freq_base_swa": local.rope.theta}
    cap = {} if config.logit_softcap is None else {"final_logit_softcapping": config.logit_softcap}
    return _write_sandwich(config) | write_rope(full.rope, full.head_dim) | own | cap


def _read_gpt2(keys: Keys, tensors: Tensors) -> ModelConfig:
    config = read_base(
        keys,
        tensors,
        "gpt2",
        rope=None,
        norm="layer",
        eps=LAYER_EPS,
        activation="gelu_tanh",
        bias=(*QUERY_KEY_VALUE, "output"),
    )
    config = llama.with_layers(config, feed_forward=replace(config.layers[0].network, gated=False, bias=True))
    return replace(config, learned_positions=LearnedPositions(config.max_positions))


def _write_gpt2(config: ModelConfig) -> dict[str, Any]:
    return write_base(config, LAYER_EPS)


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    return _write_router(config) if config.family == "mixtral" else _write_rotary(config)


ARCHITECTURES = (
    Architecture("llama", ("llama", "mistral", "mixtral"), _read_llama, _write_llama, layout.llama_rules),
    Architecture("qwen2", ("qwen2",), _read_qwen2, _write_rotary, layout.rules),
    Architecture("qwen2moe", ("qwen2_moe",), _read_qwen2_moe, _write_qwen2_moe, layout.rules),
    Architecture("qwen3", ("qwen3",), _read_qwen3, _write_rotary, layout.rules),
    Architecture("qwen3moe", ("qwen3_moe",), _read_qwen3_moe, _write_qwen3_moe, layout.rules),
    Architecture("gemma", ("gemma",), _read_gemma, _write_rotary, layout.gemma_rules),
    Architecture("gemma2", ("gemma2",), _read_gemma2, _write_gemma2, layout.gemma_rules),
    Architecture("gemma3", ("gemma3_text",), _read_gemma3, _write_gemma3, layout.gemma_rules),
    Architecture("gpt2", ("gpt2",), _read_gpt2, _write_gpt2, layout.gpt2_rules),
    Architecture("bert", ("bert", "distilbert"), read_bert, write_bert, layout.bert_rules, encodes=True),
)
BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
BY_FAMILY = {family: architecture for architecture in ARCHITECTURES for family in architecture.families}
