"""GPT-2, GPT-3 and OPT: layer norm, learned positions, biases everywhere, no gate, a head that is the embedding.

Sources: Radford et al. 2019; Brown et al. 2020 (section 2.1: every second layer sees a band of keys alone); Zhang et
al. 2022 (relu; 350m norms after each sublayer and has a narrower embedding). No class in `transformers` is a GPT-3; its
folder is laid out as one for groundup alone, with GPT-2's names and the keys with which others describe windows.
"""

from collections.abc import Sequence
from typing import Any

from groundup.formats import fields
from groundup.formats.config_map import ConfigMap, Facts, PerLayer, Several, fixed, without_effect
from groundup.formats.family import mapped
from groundup.formats.keys import Keys
from groundup.formats.rules import Joined, Rule, same, with_biases, without_prefix
from groundup.model.config import ModelConfig

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
)

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


def gpt2_rules(config: ModelConfig) -> list[Rule]:
    """GPT-2's names; its matrices lie as (inputs, outputs), queries, keys and values as one."""
    projections = tuple(f"layers.*.mixer.{name}.weight" for name in ("query", "key", "value"))
    fused = Rule(projections, ("transformer.h.*.attn.c_attn.weight",), Joined(transposed=True))
    transposed = [Rule((ours,), (disk,), Joined(transposed=True)) for ours, disk in GPT2_TRANSPOSED.items()]
    return with_biases([*same(GPT2_NAMES), fused, *transposed])


def _read_scales(keys: Keys, facts: Facts) -> None:
    """Scores may lack their usual scale, and may be divided by the number of their layer."""
    usual = keys.flag("scale_attn_weights", default=True)
    by_layer = keys.flag("scale_attn_by_inverse_layer_idx", default=False)
    divisors = [index + 1 if by_layer else 1 for index in range(facts["layers"])]
    scale = facts["mixer.head_dim"] ** -0.5 if usual else 1.0
    facts["mixer.scale"] = PerLayer(tuple(None if usual and one == 1 else scale / one for one in divisors))


def _write_scales(config: ModelConfig) -> dict[str, Any]:
    first, last = config.layers[0].attention, config.layers[-1].attention
    return {
        "scale_attn_by_inverse_layer_idx": last.scale != first.scale,
        "scale_attn_weights": first.scale is None,
    }


# What GPT-2 and GPT-J call the sizes of their layers.
SHAPE: ConfigMap = {
    **without_effect(GPT2_WITHOUT_EFFECT),
    "n_embd": fields.WIDTH,
    "n_head": fields.EqualHeads("n_embd"),
    "n_inner": fields.WIDER,
    "n_layer": fields.LAYERS,
    "activation_function": fields.GPT_ACTIVATION.usually("gelu_new"),
    "layer_norm_epsilon": fields.EPS.usually(1e-5),
}
# The usual names of the same, and what such layers have beside: no gate, biases everywhere.
PLAIN_KEYS: ConfigMap = {
    "hidden_size": fields.WIDTH,
    "num_attention_heads": fields.EqualHeads("hidden_size"),
    "num_hidden_layers": fields.LAYERS,
    "intermediate_size": fields.INNER,
    "hidden_act": fields.ACTIVATION.usually("gelu"),
    "layer_norm_eps": fields.EPS.usually(1e-5),
}
PLAIN: Facts = {"norm.kind": "layer", "norm.bias": True, "feed_forward.gated": False, "feed_forward.bias": True}
GPT2_KEYS = SHAPE | {
    "n_positions": fields.POSITIONS.usually(1024),
    "vocab_size": fields.VOCABULARY.usually(50_257),
    "tie_word_embeddings": fields.TIED.usually(True),
    "add_cross_attention": fixed(False),
    "scale_attn_weights": Several(_read_scales, _write_scales),
}
GPT2_FACTS = PLAIN | {"mixer.bias": fields.ALL, "learned_positions": fields.learned_positions()}


def opt_rules(config: ModelConfig) -> Sequence[Rule]:
    """OPT's names; a norm is called the same whether it stands before its sublayer or after."""
    place = "norm" if config.layers[0].placement == "pre" else "sum_norm"
    norms = {f"layers.*.{part}_{place}.weight": disk for part, disk in OPT_NORMS.items()}
    return with_biases(same(OPT_NAMES | norms))


def _read_norms(keys: Keys, facts: Facts) -> None:
    """Where the norms stand, and whether they have weights."""
    first = keys.flag("do_layer_norm_before", default=True)
    bare = keys.flag("_remove_final_layer_norm", default=False)
    affine = keys.flag("layer_norm_elementwise_affine", default=True)
    facts |= {"norm.kind": "layer" if affine else "layer_without_weight", "norm.bias": affine, "norm.eps": 1e-5}
    facts["layer.placement"] = "pre" if first else "post"
    if bare or not first:
        facts["final_norm"] = None


def _write_norms(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[0]
    first = layer.placement == "pre"
    return {
        "_remove_final_layer_norm": first and config.final_norm is None,
        "do_layer_norm_before": first,
        "layer_norm_elementwise_affine": layer.norm.has_weight,
    }


def _read_embedding_width(keys: Keys, facts: Facts) -> None:
    width = keys.optional_size("word_embed_proj_dim") or facts["width"]
    facts["embedding_width"] = None if width == facts["width"] else width


OPT_KEYS: ConfigMap = {
    **without_effect("activation_dropout attention_dropout dropout init_std layerdrop prefix output_projection"),
    "hidden_size": fields.WIDTH,
    "num_attention_heads": fields.EqualHeads("hidden_size"),
    "num_hidden_layers": fields.LAYERS,
    "enable_bias": fields.AllBiases(True),
    "do_layer_norm_before": Several(_read_norms, _write_norms),
    "max_position_embeddings": fields.POSITIONS.usually(2048),
    "ffn_dim": fields.INNER,
    "activation_function": fields.ACTIVATION.usually("relu"),
    "word_embed_proj_dim": Several(_read_embedding_width, lambda config: {"word_embed_proj_dim": config.table_width}),
    "vocab_size": fields.VOCABULARY.usually(50_272),
    "tie_word_embeddings": fields.TIED.usually(True),
}


MASKS = ("transformer.h.*.attn.bias", "transformer.h.*.attn.masked_bias")
# OpenAI's own files leave out `transformer.`.
BARE_MASKS = tuple(name.removeprefix("transformer.") for name in MASKS)
GPT2 = mapped(
    "gpt2",
    "GPT2LMHeadModel",
    GPT2_KEYS,
    gpt2_rules,
    always=GPT2_FACTS,
    ignored=MASKS + BARE_MASKS,
    other_rules=(lambda config: without_prefix(gpt2_rules(config), "transformer."),),
)
GPT3 = mapped(
    "gpt3",
    "GPT3LMHeadModel",
    GPT2_KEYS | {"sliding_window": fields.Windows(None, period=1)},
    gpt2_rules,
    always=GPT2_FACTS,
)
OPT = mapped(
    "opt",
    "OPTForCausalLM",
    OPT_KEYS,
    opt_rules,
    always={"feed_forward.gated": False, "learned_positions": fields.learned_positions(OPT_OFFSET)},
)
