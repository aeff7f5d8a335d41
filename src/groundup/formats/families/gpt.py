"""GPT-2, GPT-3 and OPT: layer norm, learned positions, biases everywhere, no gate, a head that is the embedding.

Sources: Radford et al. 2019; Brown et al. 2020 (section 2.1: every second layer sees a band of keys alone); Zhang et
al. 2022 (relu; 350m norms after each sublayer and has a narrower embedding). No class in `transformers` is a GPT-3; its
folder is laid out as one for groundup alone, with GPT-2's names and the keys with which others describe windows.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from groundup.formats.families.llama import ACTIVATIONS, ALL, activation_name, with_windows, write_windows
from groundup.formats.family import Family
from groundup.formats.keys import Keys
from groundup.formats.rules import Joined, Rule, same, with_biases, without_prefix
from groundup.model.config import LearnedPositions, ModelConfig
from groundup.model.specs import Attention, FeedForward, LayerSpec, Norm

GPT2_NAMES = {
    "embedding.weight": "transformer.wte.weight",
    "positions.weight": "transformer.wpe.weight",
    "layers.*.mixer_norm.weight": "transformer.h.*.ln_1.weight",
    "layers.*.feed_forward_norm.weight": "transformer.h.*.ln_2.weight",
    "final_norm.weight": "transformer.ln_f.weight",
    "head.weight": "lm_head.weight",
}
GPT2_TRANSPOSED = {
    "layers.*.mixer.output.weight": "transformer.h.*.attn.c_proj.weight",
    "layers.*.feed_forward.up.weight": "transformer.h.*.mlp.c_fc.weight",
    "layers.*.feed_forward.down.weight": "transformer.h.*.mlp.c_proj.weight",
}
# Dropout, other heads than the language model's, and `n_ctx`, which repeats `n_positions`. Scores are always
# exponentiated in at least float32 here, whatever `reorder_and_upcast_attn` says.
GPT2_WITHOUT_EFFECT = (
    "attn_pdrop embd_pdrop n_ctx reorder_and_upcast_attn resid_pdrop summary_activation summary_first_dropout "
    "summary_proj_to_labels summary_type summary_use_proj task_specific_params"
).split()

OPT_NAMES = {
    "embedding.weight": "model.decoder.embed_tokens.weight",
    "embedding_in.weight": "model.decoder.project_in.weight",
    "embedding_out.weight": "model.decoder.project_out.weight",
    "positions.weight": "model.decoder.embed_positions.weight",
    "layers.*.mixer.query.weight": "model.decoder.layers.*.self_attn.q_proj.weight",
    "layers.*.mixer.key.weight": "model.decoder.layers.*.self_attn.k_proj.weight",
    "layers.*.mixer.value.weight": "model.decoder.layers.*.self_attn.v_proj.weight",
    "layers.*.mixer.output.weight": "model.decoder.layers.*.self_attn.out_proj.weight",
    "layers.*.feed_forward.up.weight": "model.decoder.layers.*.fc1.weight",
    "layers.*.feed_forward.down.weight": "model.decoder.layers.*.fc2.weight",
    "final_norm.weight": "model.decoder.final_layer_norm.weight",
    "head.weight": "lm_head.weight",
}
OPT_NORMS = {
    "mixer": "model.decoder.layers.*.self_attn_layer_norm.weight",
    "feed_forward": "model.decoder.layers.*.final_layer_norm.weight",
}
OPT_OFFSET = 2


def read_heads(keys: Keys, width: str, heads: str) -> tuple[int, int, int]:
    """The model's width, its heads, and what each head has of the width, by the names of the two keys.

    Raises ValueError if the heads do not divide the width.
    """
    size, count = keys.size(width), keys.size(heads)
    if size % count:
        raise ValueError(f"`{width}` ({size}) must be a multiple of `{heads}` ({count})")
    return size, count, size // count


def gpt2_rules(config: ModelConfig) -> list[Rule]:
    """GPT-2's names; its matrices lie as (inputs, outputs), queries, keys and values as one."""
    projections = tuple(f"layers.*.mixer.{name}.weight" for name in ("query", "key", "value"))
    fused = Rule(projections, ("transformer.h.*.attn.c_attn.weight",), Joined(transposed=True))
    transposed = [Rule((ours,), (disk,), Joined(transposed=True)) for ours, disk in GPT2_TRANSPOSED.items()]
    return with_biases([*same(GPT2_NAMES), fused, *transposed])


def _read_gpt2(keys: Keys) -> ModelConfig:
    keys.without_effect(*GPT2_WITHOUT_EFFECT)
    keys.fixed(add_cross_attention=False)
    width, heads, head_dim = read_heads(keys, "n_embd", "n_head")
    positions = keys.size("n_positions", default=1024)
    norm = Norm("layer", keys.positive("layer_norm_epsilon", default=1e-5), bias=True)
    activation = keys.choice("activation_function", among=ACTIVATIONS, default="gelu_new")
    feed_forward = FeedForward(keys.optional_size("n_inner") or 4 * width, activation, gated=False, bias=True)
    scaled = keys.flag("scale_attn_weights", default=True)
    by_layer = keys.flag("scale_attn_by_inverse_layer_idx", default=False)

    def layer(index: int) -> LayerSpec:
        divisor = index + 1 if by_layer else 1
        scale = None if scaled and divisor == 1 else (head_dim**-0.5 if scaled else 1.0) / divisor
        return LayerSpec(Attention(heads, heads, head_dim, bias=ALL, scale=scale), feed_forward, norm)

    return ModelConfig(
        family="gpt2",
        vocab_size=keys.size("vocab_size", default=50_257),
        width=width,
        layers=tuple(map(layer, range(keys.size("n_layer")))),
        final_norm=norm,
        tied_head=keys.flag("tie_word_embeddings", default=True),
        max_positions=positions,
        learned_positions=LearnedPositions(positions),
    )


def _write_gpt2(config: ModelConfig) -> dict[str, Any]:
    first, last = config.layers[0], config.layers[-1]
    return {
        "activation_function": _gpt_activation(first.network),
        "layer_norm_epsilon": first.norm.eps,
        "n_embd": config.width,
        "n_head": first.attention.heads,
        "n_inner": first.network.width,
        "n_layer": len(config.layers),
        "n_positions": config.max_positions,
        "scale_attn_by_inverse_layer_idx": last.attention.scale != first.attention.scale,
        "scale_attn_weights": first.attention.scale is None,
        "tie_word_embeddings": config.tied_head,
        "vocab_size": config.vocab_size,
    }


def _gpt_activation(feed_forward: FeedForward) -> str:
    """The tanh approximation by the name that GPT-2's file has for it."""
    return "gelu_new" if feed_forward.activation == "gelu_tanh" else activation_name(feed_forward.activation)


def _read_gpt3(keys: Keys) -> ModelConfig:
    config = replace(_read_gpt2(keys), family="gpt3")
    kinds = keys.texts("layer_types") or ["full_attention"] * len(config.layers)
    return with_windows(config, keys.optional_size("sliding_window"), kinds)


def _write_gpt3(config: ModelConfig) -> dict[str, Any]:
    return _write_gpt2(config) | write_windows(config)


def opt_rules(config: ModelConfig) -> Sequence[Rule]:
    """OPT's names; a norm is called the same whether it stands before its sublayer or after."""
    place = "norm" if config.layers[0].placement == "pre" else "sum_norm"
    norms = {f"layers.*.{part}_{place}.weight": disk for part, disk in OPT_NORMS.items()}
    return with_biases(same(OPT_NAMES | norms))


def _read_opt(keys: Keys) -> ModelConfig:
    keys.without_effect(
        *("activation_dropout", "attention_dropout", "dropout", "init_std", "layerdrop", "prefix", "output_projection")
    )
    width, heads, head_dim = read_heads(keys, "hidden_size", "num_attention_heads")
    bias, affine = (keys.flag(name, default=True) for name in ("enable_bias", "layer_norm_elementwise_affine"))
    norm = Norm("layer", 1e-5, bias=True) if affine else Norm("layer_without_weight", 1e-5)
    first = keys.flag("do_layer_norm_before", default=True)
    bare = keys.flag("_remove_final_layer_norm", default=False)
    positions = keys.size("max_position_embeddings", default=2048)
    layer = LayerSpec(
        Attention(heads, heads, head_dim, bias=ALL if bias else ()),
        FeedForward(
            keys.size("ffn_dim"),
            keys.choice("activation_function", among=ACTIVATIONS, default="relu"),
            gated=False,
            bias=bias,
        ),
        norm,
        "pre" if first else "post",
    )
    embedding_width = keys.optional_size("word_embed_proj_dim") or width
    return ModelConfig(
        family="opt",
        vocab_size=keys.size("vocab_size", default=50_272),
        width=width,
        layers=(layer,) * keys.size("num_hidden_layers"),
        final_norm=norm if first and not bare else None,
        tied_head=keys.flag("tie_word_embeddings", default=True),
        max_positions=positions,
        learned_positions=LearnedPositions(positions, OPT_OFFSET),
        embedding_width=None if embedding_width == width else embedding_width,
    )


def _write_opt(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[0]
    first = layer.placement == "pre"
    return {
        "_remove_final_layer_norm": first and config.final_norm is None,
        "activation_function": activation_name(layer.network.activation),
        "do_layer_norm_before": first,
        "enable_bias": layer.network.bias,
        "ffn_dim": layer.network.width,
        "hidden_size": config.width,
        "layer_norm_elementwise_affine": layer.norm.has_weight,
        "max_position_embeddings": config.max_positions,
        "num_attention_heads": layer.attention.heads,
        "num_hidden_layers": len(config.layers),
        "tie_word_embeddings": config.tied_head,
        "vocab_size": config.vocab_size,
        "word_embed_proj_dim": config.table_width,
    }


MASKS = ("transformer.h.*.attn.bias", "transformer.h.*.attn.masked_bias")
# OpenAI's own files leave out `transformer.`.
BARE_MASKS = tuple(name.removeprefix("transformer.") for name in MASKS)
GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    _read_gpt2,
    _write_gpt2,
    gpt2_rules,
    ignored=MASKS + BARE_MASKS,
    other_rules=(lambda config: without_prefix(gpt2_rules(config), "transformer."),),
)
GPT3 = Family("gpt3", "GPT3LMHeadModel", _read_gpt3, _write_gpt3, gpt2_rules)
OPT = Family("opt", "OPTForCausalLM", _read_opt, _write_opt, opt_rules)
