"""Whisper: an encoder of sound and a decoder of text (Radford et al. 2022).

Layer norm before each sublayer, biases everywhere but on keys, exact GELU, positions that are added: in the encoder
stored sinusoids, in the decoder learned ones; the head is the embedding.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from groundup.formats.families.gpt import read_heads
from groundup.formats.families.llama import ACTIVATIONS, activation_name
from groundup.formats.family import Family
from groundup.formats.keys import Keys
from groundup.formats.rules import Rule, same, with_biases
from groundup.model.config import AudioConfig, EncoderDecoderConfig, LearnedPositions, ModelConfig
from groundup.model.specs import Attention, FeedForward, LayerSpec, Norm, Projection

BIASED: tuple[Projection, ...] = ("query", "value", "output")
PARTS = {
    "mixer.query": "self_attn.q_proj",
    "mixer.key": "self_attn.k_proj",
    "mixer.value": "self_attn.v_proj",
    "mixer.output": "self_attn.out_proj",
    "mixer_norm": "self_attn_layer_norm",
    "cross.query": "encoder_attn.q_proj",
    "cross.key": "encoder_attn.k_proj",
    "cross.value": "encoder_attn.v_proj",
    "cross.output": "encoder_attn.out_proj",
    "cross_norm": "encoder_attn_layer_norm",
    "feed_forward.up": "fc1",
    "feed_forward.down": "fc2",
    "feed_forward_norm": "final_layer_norm",
}
EMBEDDING, HEAD = "model.decoder.embed_tokens.weight", "proj_out.weight"
NAMES = {
    "encoder.first.weight": "model.encoder.conv1.weight",
    "encoder.second.weight": "model.encoder.conv2.weight",
    "decoder.embedding.weight": EMBEDDING,
    "decoder.head.weight": HEAD,
    **{f"{side}.positions.weight": f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder")},
    **{f"{side}.final_norm.weight": f"model.{side}.layer_norm.weight" for side in ("encoder", "decoder")},
    **{
        f"{side}.layers.*.{ours}.weight": f"model.{side}.layers.*.{theirs}.weight"
        for side in ("encoder", "decoder")
        for ours, theirs in PARTS.items()
    },
}
# Dropout, masked training, heads of other uses, what generation suppresses or forces, and `scale_embedding`, which is
# read by no version of the reference's code.
WITHOUT_EFFECT = (
    "activation_dropout apply_spec_augment attention_dropout begin_suppress_tokens classifier_proj_size "
    "decoder_layerdrop dropout encoder_layerdrop forced_decoder_ids init_std mask_feature_length "
    "mask_feature_min_masks mask_feature_prob mask_time_length mask_time_min_masks mask_time_prob max_length "
    "median_filter_width num_hidden_layers scale_embedding suppress_tokens use_weighted_layer_sum"
).split()


def _rules(config: EncoderDecoderConfig) -> Sequence[Rule]:
    return with_biases(same(NAMES))


def _read_layer(keys: Keys, side: str, norm: Norm) -> tuple[int, LayerSpec]:
    """The width, and a layer of either side, without what makes it a decoder's."""
    width, heads, head_dim = read_heads(keys, "d_model", f"{side}_attention_heads")
    activation = keys.choice("activation_function", among=ACTIVATIONS, default="gelu")
    feed_forward = FeedForward(keys.size(f"{side}_ffn_dim"), activation, gated=False, bias=True)
    return width, LayerSpec(Attention(heads, heads, head_dim, bias=BIASED, causal=False), feed_forward, norm)


def _read(keys: Keys) -> EncoderDecoderConfig:
    keys.without_effect(*WITHOUT_EFFECT)
    norm = Norm("layer", 1e-5, bias=True)
    width, encoder_layer = _read_layer(keys, "encoder", norm)
    _, layer = _read_layer(keys, "decoder", norm)
    decoder_layer = replace(layer, mixer=replace(layer.attention, causal=True), cross=layer.attention)
    positions = keys.size("max_target_positions", default=448)
    return EncoderDecoderConfig(
        family="whisper",
        encoder=AudioConfig(
            width=width,
            layers=(encoder_layer,) * keys.size("encoder_layers"),
            final_norm=norm,
            mel_bins=keys.size("num_mel_bins", default=80),
            positions=keys.size("max_source_positions", default=1500),
        ),
        decoder=ModelConfig(
            family="whisper",
            vocab_size=keys.size("vocab_size"),
            width=width,
            layers=(decoder_layer,) * keys.size("decoder_layers"),
            final_norm=norm,
            tied_head=keys.flag("tie_word_embeddings", default=True),
            max_positions=positions,
            learned_positions=LearnedPositions(positions),
        ),
        start_id=keys.count("decoder_start_token_id"),
    )


def _write(config: EncoderDecoderConfig) -> dict[str, Any]:
    encoder, decoder = config.encoder, config.decoder
    assert isinstance(encoder, AudioConfig)
    keys: dict[str, Any] = {}
    for side, stack in (("encoder", encoder), ("decoder", decoder)):
        keys[f"{side}_attention_heads"] = stack.layers[0].attention.heads
        keys[f"{side}_ffn_dim"] = stack.layers[0].network.width
        keys[f"{side}_layers"] = len(stack.layers)
    return keys | {
        "activation_function": activation_name(decoder.layers[0].network.activation),
        "d_model": decoder.width,
        "decoder_start_token_id": config.start_id,
        "is_encoder_decoder": True,
        "max_source_positions": encoder.positions,
        "max_target_positions": decoder.max_positions,
        "num_mel_bins": encoder.mel_bins,
        "tie_word_embeddings": decoder.tied_head,
        "vocab_size": config.vocab_size,
    }


WHISPER = Family("whisper", "WhisperForConditionalGeneration", _read, _write, _rules, copies=((HEAD, EMBEDDING),))
