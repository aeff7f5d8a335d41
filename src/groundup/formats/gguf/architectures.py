"""The architectures of llama.cpp, as data: their metadata keys ⇄ `ModelConfig`.

`read` builds what llama.cpp computes for a file. By that a model is judged before it is written, too: what its keys,
read again, do not give back, llama.cpp would not compute. Sources: its src/models/*.cpp for what is computed, its
convert_hf_to_gguf.py for how it is stored. A new architecture is an entry in `ARCHITECTURES`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from groundup.formats import fields
from groundup.formats.config_map import (
    ConfigMap,
    Entry,
    Facts,
    Field,
    PerLayer,
    Several,
    fixed,
    read_facts,
    stack_of,
    write_keys,
)
from groundup.formats.families.gpt import PLAIN
from groundup.formats.families.llama import GATED, NORMED_HEADS
from groundup.formats.gguf import layout
from groundup.formats.gguf.encoders import BERT_KEYS, bert_facts
from groundup.formats.gguf.model_keys import (
    LAYER_NORM_KEYS,
    QUERY_KEY_VALUE,
    ROTARY_KEYS,
    WIDE_HEADS,
    Tensors,
    write_rotary,
)
from groundup.formats.gguf.ropes import read_rope, read_scaling, write_rope
from groundup.formats.keys import Keys
from groundup.formats.rules import Rule
from groundup.model.config import ModelConfig
from groundup.model.rotary import LinearScaling, Rope

WINDOW, PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"


@dataclass(frozen=True)
class Architecture:
    """One `general.architecture`.

    families: those of ours that are written as it.
    keys: its own, without its name in front; always: what is not in them, from the tensors of a file and llama.cpp's
        code, the family that it is read as among it.
    rules: the names and layout of its tensors, for a configuration.
    encodes: what leaves the layers is all that llama.cpp computes; a head is left out.
    """

    name: str
    families: tuple[str, ...]
    keys: Mapping[str, Entry]
    always: Callable[[Tensors], Facts]
    rules: Callable[[ModelConfig], Sequence[Rule]]
    encodes: bool = False

    def read(self, keys: Keys, tensors: Tensors) -> ModelConfig:
        """What llama.cpp computes. Raises ValueError or KeyError, naming the key."""
        return stack_of(ModelConfig, read_facts(self.keys, keys, tensors.facts() | self.always(tensors)))

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """The keys; what llama.cpp has none for is left out."""
        return {key: value for key, value in write_keys(self.keys, config).items() if value is not None}


def _read_llama_rope(keys: Keys, facts: Facts) -> None:
    facts["mixer.rope"] = read_rope(keys, facts["tensors.frequencies"])


def _read_llama_experts(keys: Keys, facts: Facts) -> None:
    """LLaMA and Mistral, or Mixtral where there are experts."""
    if keys.count("expert_count", default=0):
        facts |= read_facts(_expert_keys(normalised=True), keys) | {"family": "mixtral"}
        facts |= {"mixer.bias": (), "feed_forward.bias": False}
    else:
        keys.fixed(expert_used_count=0)


def _expert_keys(normalised: bool) -> ConfigMap:
    """normalised: whether the weights of the chosen experts are divided by their sum."""
    return {
        "expert_weights_norm": fixed(normalised),
        "expert_weights_scale": fixed(1.0),
        "expert_gating_func": fixed(1),
        "expert_group_count": fixed(1),
        "expert_count": fields.EXPERTS,
        "expert_used_count": fields.CHOSEN,
    }


LLAMA_KEYS = ROTARY_KEYS | {
    "rope.freq_base": Several(_read_llama_rope, write_rotary),
    "expert_count": Several(_read_llama_experts, lambda config: write_keys(_expert_keys(normalised=True), config)),
}
EXPERT_WIDTH = {"expert_feed_forward_length": fields.EXPERT_WIDTH}
QWEN2_MOE_KEYS = (
    ROTARY_KEYS
    | WIDE_HEADS
    | _expert_keys(normalised=False)
    | EXPERT_WIDTH
    | {"expert_shared_feed_forward_length": fields.SHARED_WIDTH}
)
QWEN3_MOE_KEYS = ROTARY_KEYS | _expert_keys(normalised=True) | EXPERT_WIDTH


def _llama_facts(tensors: Tensors) -> Facts:
    return GATED | {
        "family": "llama",
        "feed_forward.activation": "silu",
        "mixer.bias": tuple(projection for projection, name in layout.BIASES.items() if tensors.have(name)),
        "feed_forward.bias": tensors.have("blk.0.ffn_up.bias"),
        "tensors.frequencies": tensors.frequencies,
    }


@dataclass(frozen=True)
class _Windows:
    """Which layers have a window, and how wide it is.

    window, period: what files without the keys mean.
    """

    window: int | None
    period: int

    def read(self, key: str, keys: Keys, facts: Facts) -> None:
        window, count = keys.optional_size(WINDOW, default=self.window), facts["layers"]
        seen = keys.flags(PATTERN, default=[bool((index + 1) % self.period) for index in range(count)])
        if len(seen) != count:
            raise ValueError(f"`{PATTERN}` must have one entry for each of the {count} layers, not {len(seen)}")
        facts["mixer.window"] = PerLayer(tuple(window if here else None for here in seen))

    def write(self, key: str, config: Any) -> dict[str, Any]:
        written = fields.write_windows(config)
        return {PATTERN: [kind != fields.FULL for kind in written["layer_types"]], WINDOW: written["sliding_window"]}


def _check_windows(keys: Keys, facts: Facts) -> None:
    if set(facts["mixer.window"].values) == {None}:
        raise ValueError("llama.cpp wants a layer with a window in gemma2")
    keys.fixed(**{"rope.freq_base_swa": facts["mixer.rope"].theta})


GEMMA2_KEYS = ROTARY_KEYS | {
    WINDOW: _Windows(4096, period=2),
    PATTERN: Several(_check_windows),
    "attn_logit_softcapping": Field("mixer.softcap", Keys.positive, default=50.0),
    "final_logit_softcapping": Field("logit_softcap", Keys.positive, default=30.0),
}


def _read_gemma3_ropes(keys: Keys, facts: Facts) -> None:
    """Layers without a window may be stretched; the others have a base of their own."""
    theta, scaling = keys.positive("rope.freq_base", default=10_000.0), read_scaling(keys)
    if not isinstance(scaling, LinearScaling | None):
        raise ValueError("`rope.scaling.type` must be linear or none")
    far, local = Rope(theta, scaling=scaling), Rope(keys.positive("rope.freq_base_swa", default=10_000.0))
    facts["mixer.rope"] = PerLayer(tuple(far if one is None else local for one in facts["mixer.window"].values))


def _write_gemma3_ropes(config: ModelConfig) -> dict[str, Any]:
    mixers = [layer.attention for layer in config.layers]
    full = next((mixer for mixer in mixers if mixer.window is None), mixers[0])
    local = next((mixer for mixer in mixers if mixer.window is not None), full)
    own = {} if local.rope is None else {"rope.freq_base_swa": local.rope.theta}
    return write_rope(full.rope, full.head_dim) | own


GEMMA3_KEYS = {
    **{key: entry for key, entry in ROTARY_KEYS.items() if key != "rope.freq_base"},
    WINDOW: _Windows(None, period=6),
    "rope.freq_base": Several(_read_gemma3_ropes, _write_gemma3_ropes),
    "final_logit_softcapping": fields.LOGIT_SOFTCAP.usually(None),
}


def _gemma_facts(family: str) -> Facts:
    return GATED | {
        "family": family,
        "norm.kind": "rms_plus_one",
        "feed_forward.activation": "gelu_tanh",
        "embedding_scale": lambda facts: facts["width"] ** 0.5,
        "tied_head": True,
    }


def _sandwich_facts(family: str, exception: int) -> Facts:
    """exception: the number of layers of the one model that scales its scores by what a head has of the width."""

    def scale(facts: Facts) -> float:
        of_width = facts["width"] // facts["mixer.heads"]
        return float((of_width if facts["layers"] == exception else facts["mixer.head_dim"]) ** -0.5)

    return _gemma_facts(family) | {"layer.placement": "sandwich", "mixer.scale": scale}


def _gemma3_facts(tensors: Tensors) -> Facts:
    head = {"tied_head": tensors.facts()["tied_head"]}
    return NORMED_HEADS | _sandwich_facts("gemma3_text", exception=62) | head


def _silu(family: str, normed: bool = False, **mixer: Any) -> Callable[[Tensors], Facts]:
    """What Qwen's models have beside their keys."""
    facts = (NORMED_HEADS if normed else GATED) | {"family": family, "feed_forward.activation": "silu"}
    return lambda tensors: facts | {f"mixer.{name}": value for name, value in mixer.items()}


def _qwen2_moe_facts(tensors: Tensors) -> Facts:
    """llama.cpp wants a head of its own here."""
    return _silu("qwen2_moe", bias=QUERY_KEY_VALUE)(tensors) | {
        "router.normalised": False,
        "experts.shared_gate": True,
        "tied_head": False,
    }


def _gpt2_facts(tensors: Tensors) -> Facts:
    return PLAIN | {
        "family": "gpt2",
        "feed_forward.activation": "gelu_tanh",
        "mixer.bias": fields.ALL,
        "learned_positions": fields.learned_positions(),
    }


ARCHITECTURES = (
    Architecture("llama", ("llama", "mistral", "mixtral"), LLAMA_KEYS, _llama_facts, layout.llama_rules),
    Architecture("qwen2", ("qwen2",), ROTARY_KEYS | WIDE_HEADS, _silu("qwen2", bias=QUERY_KEY_VALUE), layout.rules),
    Architecture("qwen2moe", ("qwen2_moe",), QWEN2_MOE_KEYS, _qwen2_moe_facts, layout.rules),
    Architecture("qwen3", ("qwen3",), ROTARY_KEYS, _silu("qwen3", normed=True), layout.rules),
    Architecture("qwen3moe", ("qwen3_moe",), QWEN3_MOE_KEYS, _silu("qwen3_moe", normed=True), layout.rules),
    Architecture("gemma", ("gemma",), ROTARY_KEYS, lambda tensors: _gemma_facts("gemma"), layout.gemma_rules),
    Architecture(
        "gemma2", ("gemma2",), GEMMA2_KEYS, lambda tensors: _sandwich_facts("gemma2", exception=46), layout.gemma_rules
    ),
    Architecture("gemma3", ("gemma3_text",), GEMMA3_KEYS, _gemma3_facts, layout.gemma_rules),
    Architecture("gpt2", ("gpt2",), LAYER_NORM_KEYS, _gpt2_facts, layout.gpt2_rules),
    Architecture("bert", ("bert", "distilbert"), BERT_KEYS, bert_facts, layout.bert_rules, encodes=True),
)
BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
BY_FAMILY = {family: architecture for architecture in ARCHITECTURES for family in architecture.families}
