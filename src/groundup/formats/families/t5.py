"""T5 and Switch: encoder and decoder of text with relative positions, RMS norm, no scale on scores, hardly any bias.

Sources: Raffel et al. 2020 (v1.0: relu, one matrix for embedding and head, the head's input scaled by width^-1/2);
Shazeer 2020 (v1.1: gated GELU, a head of its own, no scale); Fedus et al. 2021 (Switch: experts in some layers, one for
each token, each with room for so many tokens of a text).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from groundup.formats.families.llama import ACTIVATIONS, activation_name
from groundup.formats.family import Family
from groundup.formats.keys import Keys
from groundup.formats.rules import Rule, Stacked, same, with_biases
from groundup.formats.tensor_files import TensorFiles
from groundup.model.config import EncoderDecoderConfig, ModelConfig, RelativePositions, StackConfig
from groundup.model.specs import Attention, Experts, FeedForward, LayerSpec, Norm, Router

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
).split()
# The type in which the router rounds (here always at least float32), the noise and losses of its training; padding
# never takes room with an expert here.
SWITCH_WITHOUT_EFFECT = (
    "add_router_probs router_aux_loss_coef router_dtype router_ignore_padding_tokens router_jitter_noise router_type "
    "router_z_loss_coef"
).split()


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
    rules, experts = same(_names("mlp", PLAIN)), _experts(config)
    if experts is None:
        return rules
    for side, last in SIDES.items():
        ours, theirs = f"{side}.layers.*.feed_forward", f"{side}.block.*.layer.{last}.mlp"
        rules += with_biases([Rule((f"{ours}.router.weight",), (f"{theirs}.router.classifier.weight",))])
        for part, name in PLAIN.items():
            disk = tuple(f"{theirs}.experts.expert_{index}.{name}.weight" for index in range(experts.router.experts))
            rules.append(Rule((f"{ours}.experts.{part}.weight",), disk, Stacked()))
    return rules


def _experts(config: EncoderDecoderConfig) -> Experts | None:
    """Those of the layers that have any, which are alike."""
    layers = (*config.encoder.layers, *config.decoder.layers)
    return next((layer.feed_forward for layer in layers if isinstance(layer.feed_forward, Experts)), None)


def _read_base(keys: Keys, family: str, dense: FeedForward) -> EncoderDecoderConfig:
    """Both stacks, all of their layers with this feed-forward network, the head tied and scaled as in version 1.0."""
    keys.without_effect(*WITHOUT_EFFECT)
    width, vocab_size = keys.size("d_model"), keys.size("vocab_size")
    norm = Norm("rms", keys.positive("layer_norm_epsilon", default=1e-6))
    relative = RelativePositions(
        keys.size("relative_attention_num_buckets", default=32),
        keys.size("relative_attention_max_distance", default=128),
    )
    heads = keys.size("num_heads")
    attention = Attention(heads, heads, keys.size("d_kv", default=64), scale=1.0)
    crossing = replace(attention, causal=False)
    count = keys.size("num_layers")
    return EncoderDecoderConfig(
        family=family,
        encoder=StackConfig(
            width=width,
            layers=(LayerSpec(crossing, dense, norm),) * count,
            final_norm=norm,
            relative_positions=relative,
        ),
        decoder=ModelConfig(
            family=family,
            vocab_size=vocab_size,
            width=width,
            layers=(LayerSpec(attention, dense, norm, cross=crossing),)
            * (keys.optional_size("num_decoder_layers") or count),
            final_norm=norm,
            relative_positions=relative,
            tied_head=keys.flag("tie_word_embeddings", default=True),
            max_positions=keys.size("n_positions", default=512),
            logit_scale=width**-0.5,
        ),
        start_id=keys.count("decoder_start_token_id", default=0),
    )


def _write_base(config: EncoderDecoderConfig) -> dict[str, Any]:
    layer, relative = config.decoder.layers[0], config.decoder.relative_positions
    assert relative is not None
    return {
        "d_ff": layer.network.width,
        "d_kv": layer.attention.head_dim,
        "d_model": config.decoder.width,
        "decoder_start_token_id": config.start_id,
        "dense_act_fn": _activation_name(layer.network),
        "is_encoder_decoder": True,
        "layer_norm_epsilon": layer.norm.eps,
        "n_positions": config.max_positions,
        "num_decoder_layers": len(config.decoder.layers),
        "num_heads": layer.attention.heads,
        "num_layers": len(config.encoder.layers),
        "relative_attention_max_distance": relative.max_distance,
        "relative_attention_num_buckets": relative.buckets,
        "tie_word_embeddings": config.decoder.tied_head,
        "vocab_size": config.vocab_size,
    }


def _activation_name(network: FeedForward) -> str:
    """The tanh approximation by the name that T5's files have for it."""
    return "gelu_new" if network.activation == "gelu_tanh" else activation_name(network.activation)


def _with_decoder(config: EncoderDecoderConfig, **changes: Any) -> EncoderDecoderConfig:
    return replace(config, decoder=replace(config.decoder, **changes))


def _read_t5(keys: Keys) -> EncoderDecoderConfig:
    # `gated-gelu` stands for the approximation; what newer files say in two keys of their own goes before it.
    kinds = {f"gated-{name}": ("gelu_new" if name == "gelu" else name, True) for name in ACTIVATIONS}
    kinds |= {name: (name, False) for name in ACTIVATIONS}
    name, gated = keys.choice("feed_forward_proj", among=kinds, default="relu")
    activation = keys.choice("dense_act_fn", among=ACTIVATIONS, default=name)
    gated = keys.flag("is_gated_act", default=gated)
    config = _read_base(keys, "t5", FeedForward(keys.size("d_ff"), activation, gated))
    # Once, the key for the head said whether it is scaled too; newer files say so apart, and of the head always "tied".
    scaled = keys.flag("scale_decoder_outputs", default=config.decoder.tied_head)
    return config if scaled else _with_decoder(config, logit_scale=None)


def _write_t5(config: EncoderDecoderConfig) -> dict[str, Any]:
    network = config.decoder.layers[0].network
    name = "gelu" if network.activation == "gelu_tanh" and network.gated else _activation_name(network)
    return _write_base(config) | {
        "feed_forward_proj": f"gated-{name}" if network.gated else name,
        "is_gated_act": network.gated,
        "scale_decoder_outputs": config.decoder.logit_scale is not None,
    }


def _settle_t5(config: EncoderDecoderConfig, files: TensorFiles) -> EncoderDecoderConfig:
    """A head of its own where the file holds one, whatever its keys say."""
    if not config.decoder.tied_head or not {HEAD, EMBEDDING} <= files.names():
        return config
    return _with_decoder(config, tied_head=torch.equal(files.get(HEAD), files.get(EMBEDDING)))


def _sparse_layers(layers: int, sparse: int) -> tuple[int, list[bool]]:
    """Which layers have experts where `sparse` of them shall, and the interval between these: `transformers`' rule."""
    step = layers // sparse if sparse else layers
    return step, [step == 1 or (step > 1 and index % step == 1) for index in range(layers)]


def _read_switch(keys: Keys) -> EncoderDecoderConfig:
    keys.without_effect(*SWITCH_WITHOUT_EFFECT)
    keys.fixed(batch_prioritized_routing=False, is_gated_act=False, num_selected_experts=1)
    keys.fixed(tie_word_embeddings=True)  # untied, even the two embeddings are no longer one in `transformers`
    activation = keys.choice("dense_act_fn", "feed_forward_proj", among=ACTIVATIONS, default="relu")
    dense = FeedForward(keys.size("d_ff"), activation, gated=False)
    router = Router(
        keys.size("num_experts", default=8),
        chosen=1,
        normalised=False,
        bias=keys.flag("router_bias", default=False),
        capacity=keys.size("expert_capacity", default=64),
    )
    config = _read_base(keys, "switch_transformers", dense)
    stacks: dict[str, Any] = {}
    for side in SIDES:
        stack: StackConfig = getattr(config, side)
        step, sparse = _sparse_layers(len(stack.layers), keys.count(f"num_sparse_{side}_layers", default=3))
        keys.fixed(**{f"{side}_sparse_step": step})
        fed = (Experts(dense, router) if here else dense for here in sparse)
        layers = tuple(replace(one, feed_forward=network) for one, network in zip(stack.layers, fed, strict=True))
        stacks[side] = replace(stack, layers=layers)
    return replace(config, **stacks)


def _write_switch(config: EncoderDecoderConfig) -> dict[str, Any]:
    experts, written = _experts(config), _write_base(config)
    for side in SIDES:
        layers = getattr(config, side).layers
        here = [isinstance(layer.feed_forward, Experts) for layer in layers]
        options = ((count, *_sparse_layers(len(layers), count)) for count in range(len(layers) + 2))
        fitting = [(count, step) for count, step, sparse in options if sparse == here]
        if not fitting:
            raise ValueError(f"no `num_sparse_{side}_layers` puts experts into the layers that have them here")
        written[f"num_sparse_{side}_layers"], written[f"{side}_sparse_step"] = fitting[0]
    if experts is None:
        return written
    router = experts.router
    return written | {"expert_capacity": router.capacity, "num_experts": router.experts, "router_bias": router.bias}


T5 = Family("t5", "T5ForConditionalGeneration", _read_t5, _write_t5, _rules, IGNORED, copies=COPIES, settle=_settle_t5)
SWITCH = Family(
    "switch_transformers",
    "SwitchTransformersForConditionalGeneration",
    _read_switch,
    _write_switch,
    _switch_rules,
    IGNORED,
    copies=COPIES,
)
