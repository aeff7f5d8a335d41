"""T5 and Switch: encoder and decoder of text with relative positions, RMS norm, no scale on scores, hardly any bias.

Sources: Raffel et al. 2020 (v1.0: relu, one matrix for embedding and head, the head's input scaled by width^-1/2);
Shazeer 2020 (v1.1: gated GELU, a head of its own, no scale); Fedus et al. 2021 (Switch: experts in some layers, one for
each token, each with room for so many tokens of a text).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from groundup.formats import fields
from groundup.formats.config_map import (
    ConfigMap,
    Entry,
    Facts,
    Field,
    PerLayer,
    Several,
    experts_of,
    fixed,
    layers_of,
    model_of,
    read_facts,
    without_effect,
    write_keys,
)
from groundup.formats.family import Family
from groundup.formats.keys import Keys
from groundup.formats.rules import Rule, Stacked, same, with_biases
from groundup.formats.tensor_files import TensorFiles
from groundup.model.config import EncoderDecoderConfig, ModelConfig, RelativePositions, StackConfig
from groundup.model.specs import Experts

EMBEDDING, HEAD = "shared.weight", "lm_head.weight"
# The last sublayer of a layer is the second in the encoder, the third in the decoder.
SIDES = {"encoder": 1, "decoder": 2}
ATTENTIONS = {"mixer": "0.SelfAttention", "cross": "1.EncDecAttention"}
PROJECTIONS = {"query": "q", "key": "k", "value": "v", "output": "o"}
GATED, PLAIN = {"gate": "wi_0", "up": "wi_1", "down": "wo"}, {"up": "wi", "down": "wo"}
COPIES = tuple((name, EMBEDDING) for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", HEAD))
# Version 1.0's own files hold a table that is used nowhere.
IGNORED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)
# Dropout, training, and tasks that a file comes with.
WITHOUT_EFFECT = (
    "add_cross_attention classifier_dropout dropout_rate gradient_checkpointing initializer_factor output_past "
    "task_specific_params"
)
# The type in which the router rounds (here always at least float32), the noise and losses of its training; padding
# never takes room with an expert here.
SWITCH_WITHOUT_EFFECT = (
    "add_router_probs router_aux_loss_coef router_dtype router_ignore_padding_tokens router_jitter_noise router_type "
    "router_z_loss_coef"
)


def _names(network: str, matrices: dict[str, str]) -> dict[str, str]:
    """Ours → theirs. network: what holds the matrices of a feed-forward network."""
    names = {"decoder.embedding.weight": EMBEDDING, "decoder.head.weight": HEAD}
    for side, last in SIDES.items():
        ours, theirs = f"{side}.layers.*", f"{side}.block.*.layer"
        for part, attention in ATTENTIONS.items():
            names |= {f"{ours}.{part}.{p}.weight": f"{theirs}.{attention}.{q}.weight" for p, q in PROJECTIONS.items()}
        feed = f"{theirs}.{last}.{network}"
        names |= {f"{ours}.feed_forward.{p}.weight": f"{feed}.{q}.weight" for p, q in matrices.items()}
        names |= {
            f"{ours}.mixer_norm.weight": f"{theirs}.0.layer_norm.weight",
            f"{ours}.cross_norm.weight": f"{theirs}.1.layer_norm.weight",
            f"{ours}.feed_forward_norm.weight": f"{theirs}.{last}.layer_norm.weight",
            f"{side}.relative.table.weight": f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            f"{side}.final_norm.weight": f"{side}.final_layer_norm.weight",
        }
    return names


def _rules(config: EncoderDecoderConfig) -> Sequence[Rule]:
    return same(_names("DenseReluDense", GATED if config.decoder.layers[0].network.gated else PLAIN))


def _switch_rules(config: EncoderDecoderConfig) -> Sequence[Rule]:
    rules = same(_names("mlp", PLAIN))
    experts = experts_of(config.encoder) or experts_of(config.decoder)
    if experts is None:
        return rules
    for side, last in SIDES.items():
        ours, theirs = f"{side}.layers.*.feed_forward", f"{side}.block.*.layer.{last}.mlp"
        rules += with_biases([Rule((f"{ours}.router.weight",), (f"{theirs}.router.classifier.weight",))])
        for part, name in PLAIN.items():
            disk = tuple(f"{theirs}.experts.expert_{index}.{name}.weight" for index in range(experts.router.experts))
            rules.append(Rule((f"{ours}.experts.{part}.weight",), disk, Stacked()))
    return rules


def _read_depths(keys: Keys, facts: Facts) -> None:
    count = keys.size("num_layers")
    facts |= {"encoder.layers": count, "layers": keys.optional_size("num_decoder_layers") or count}


def _read_relative(keys: Keys, facts: Facts) -> None:
    buckets = keys.size("relative_attention_num_buckets", default=32)
    distance = keys.size("relative_attention_max_distance", default=128)
    facts["relative_positions"] = RelativePositions(buckets, distance)


def _write_relative(config: ModelConfig) -> dict[str, Any]:
    relative = config.relative_positions
    assert relative is not None
    return {
        "relative_attention_max_distance": relative.max_distance,
        "relative_attention_num_buckets": relative.buckets,
    }


# What the decoder has, and the encoder as far as it is like it.
KEYS: ConfigMap = {
    **without_effect(WITHOUT_EFFECT),
    "d_model": fields.WIDTH,
    "num_decoder_layers": Several(_read_depths, partial(fields.LAYERS.write, "num_decoder_layers")),
    "num_heads": fields.HEADS,
    "d_kv": Field("mixer.head_dim", Keys.size, default=64),
    "d_ff": fields.INNER,
    "layer_norm_epsilon": fields.EPS.usually(1e-6),
    "relative_attention_num_buckets": Several(_read_relative, _write_relative),
    "tie_word_embeddings": fields.TIED.usually(True),
    "n_positions": fields.POSITIONS.usually(512),
    "vocab_size": fields.VOCABULARY,
}
# The head is scaled as in version 1.0.
ALWAYS: Facts = {
    "mixer.kv_heads": lambda facts: facts["mixer.heads"],
    "mixer.scale": 1.0,
    "logit_scale": lambda facts: facts["width"] ** -0.5,
}


def _read(family: str, table: Mapping[str, Entry], always: Facts, keys: Keys) -> EncoderDecoderConfig:
    facts = read_facts(table, keys, always)
    seeing_all = {"mixer.causal": False, "layers": facts["encoder.layers"], "layer.sparse": facts.get("encoder.sparse")}
    layers = layers_of(facts | seeing_all)
    decoder = model_of(family, facts | {"layer.cross": layers[0].attention})
    encoder = StackConfig(
        width=decoder.width,
        layers=layers,
        final_norm=decoder.final_norm,
        relative_positions=decoder.relative_positions,
    )
    start = keys.count("decoder_start_token_id", default=0)
    return EncoderDecoderConfig(family=family, encoder=encoder, decoder=decoder, start_id=start)


def _write(table: Mapping[str, Entry], config: EncoderDecoderConfig) -> dict[str, Any]:
    return write_keys(table, config.decoder) | {
        "decoder_start_token_id": config.start_id,
        "is_encoder_decoder": True,
        "num_layers": len(config.encoder.layers),
    }


def _read_activation(keys: Keys, facts: Facts) -> None:
    """`gated-gelu` stands for the approximation; what newer files say in two keys of their own goes before it."""
    kinds = {f"gated-{name}": ("gelu_new" if name == "gelu" else name, True) for name in fields.ACTIVATIONS}
    kinds |= {name: (name, False) for name in fields.ACTIVATIONS}
    name, gated = keys.choice("feed_forward_proj", among=kinds, default="relu")
    fields.ACTIVATION.usually(name).read("dense_act_fn", keys, facts)
    facts["feed_forward.gated"] = keys.flag("is_gated_act", default=gated)


def _write_activation(config: ModelConfig) -> dict[str, Any]:
    network = config.layers[0].network
    name = fields.gpt_activation_name(network.activation)
    gated_name = "gelu" if network.activation == "gelu_tanh" else name
    return {
        "dense_act_fn": name,
        "feed_forward_proj": f"gated-{gated_name}" if network.gated else name,
        "is_gated_act": network.gated,
    }


def _read_head_scale(keys: Keys, facts: Facts) -> None:
    """Once, the key for the head said whether it is scaled; newer files say so apart, and of the head always "tied"."""
    if not keys.flag("scale_decoder_outputs", default=facts["tied_head"]):
        facts["logit_scale"] = None


def _write_head_scale(config: ModelConfig) -> dict[str, Any]:
    return {"scale_decoder_outputs": config.logit_scale is not None}


T5_KEYS = KEYS | {
    "feed_forward_proj": Several(_read_activation, _write_activation),
    "scale_decoder_outputs": Several(_read_head_scale, _write_head_scale),
}


def _settle_t5(config: EncoderDecoderConfig, files: TensorFiles) -> EncoderDecoderConfig:
    """A head of its own where the file holds one, whatever its keys say."""
    if not config.decoder.tied_head or not {HEAD, EMBEDDING} <= files.names():
        return config
    tied = torch.equal(files.get(HEAD), files.get(EMBEDDING))
    return replace(config, decoder=replace(config.decoder, tied_head=tied))


def _sparse_layers(layers: int, sparse: int) -> tuple[int, list[bool]]:
    """Which layers have experts where `sparse` of them shall, and the interval between these: `transformers`' rule."""
    step = layers // sparse if sparse else layers
    return step, [step == 1 or (step > 1 and index % step == 1) for index in range(layers)]


def _read_experts(keys: Keys, facts: Facts) -> None:
    """Which layers have any, on either side."""
    for place, side, layers in (("encoder.sparse", "encoder", "encoder.layers"), ("layer.sparse", "decoder", "layers")):
        step, sparse = _sparse_layers(facts[layers], keys.count(f"num_sparse_{side}_layers", default=3))
        keys.fixed(**{f"{side}_sparse_step": step})
        facts[place] = PerLayer(tuple(sparse))


EXPERT_KEYS = {
    "num_experts": fields.EXPERTS.usually(8),
    "router_bias": Field("router.bias", Keys.flag, default=False),
    "expert_capacity": Field("router.capacity", Keys.size, default=64),
}
SWITCH_KEYS = (
    KEYS
    | EXPERT_KEYS
    | {
        **without_effect(SWITCH_WITHOUT_EFFECT),
        "batch_prioritized_routing": fixed(False),
        "is_gated_act": fixed(False),
        "num_selected_experts": fixed(1),
        "tie_word_embeddings": fixed(True),  # untied, even the two embeddings are no longer one in `transformers`
        "dense_act_fn": fields.GPT_ACTIVATION.also("feed_forward_proj").usually("relu"),
        "num_sparse_encoder_layers": Several(_read_experts),
    }
)
SWITCH_ALWAYS = ALWAYS | {
    "feed_forward.gated": False,
    "router.chosen": 1,
    "router.normalised": False,
    "tied_head": True,
}


def _write_switch(config: EncoderDecoderConfig) -> dict[str, Any]:
    written = _write(SWITCH_KEYS, config) | write_keys(EXPERT_KEYS, config.encoder)
    for side in SIDES:
        layers = getattr(config, side).layers
        here = [isinstance(layer.feed_forward, Experts) for layer in layers]
        options = ((count, *_sparse_layers(len(layers), count)) for count in range(len(layers) + 2))
        fitting = [(count, step) for count, step, sparse in options if sparse == here]
        if not fitting:
            raise ValueError(f"no `num_sparse_{side}_layers` puts experts into the layers that have them here")
        written[f"num_sparse_{side}_layers"], written[f"{side}_sparse_step"] = fitting[0]
    return written


T5 = Family(
    "t5",
    "T5ForConditionalGeneration",
    partial(_read, "t5", T5_KEYS, ALWAYS),
    partial(_write, T5_KEYS),
    _rules,
    IGNORED,
    copies=COPIES,
    settle=_settle_t5,
)
SWITCH = Family(
    "switch_transformers",
    "SwitchTransformersForConditionalGeneration",
    partial(_read, "switch_transformers", SWITCH_KEYS, SWITCH_ALWAYS),
    _write_switch,
    _switch_rules,
    IGNORED,
    copies=COPIES,
)
