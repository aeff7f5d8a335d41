"""Whisper: an encoder of sound and a decoder of text (Radford et al. 2022).

Layer norm before each sublayer, biases everywhere but on keys, exact GELU, positions that are added: in the encoder
stored sinusoids, in the decoder learned ones; the head is the embedding.
"""

from typing import Any

from groundup.formats import fields
from groundup.formats.config_map import (
    ConfigMap,
    Field,
    layers_of,
    model_of,
    read_facts,
    stack_of,
    without_effect,
    write_keys,
)
from groundup.formats.families.gpt import PLAIN
from groundup.formats.family import Family
from groundup.formats.keys import Keys
from groundup.formats.rules import named
from groundup.model.config import AudioConfig, EncoderDecoderConfig
from groundup.model.specs import Projection

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
)


def _side_keys(side: str) -> ConfigMap:
    """What encoder and decoder both have."""
    return {
        "d_model": fields.WIDTH,
        f"{side}_attention_heads": fields.EqualHeads("d_model"),
        f"{side}_ffn_dim": fields.INNER,
        f"{side}_layers": fields.LAYERS,
        "activation_function": fields.ACTIVATION.usually("gelu"),
    }


ENCODER_KEYS: ConfigMap = {
    **_side_keys("encoder"),
    "num_mel_bins": Field("mel_bins", Keys.size, default=80),
    "max_source_positions": Field("positions", Keys.size, default=1500),
}
DECODER_KEYS: ConfigMap = {
    **without_effect(WITHOUT_EFFECT),
    **_side_keys("decoder"),
    "max_target_positions": fields.POSITIONS.usually(448),
    "tie_word_embeddings": fields.TIED.usually(True),
    "vocab_size": fields.VOCABULARY,
}
ALWAYS = PLAIN | {"norm.eps": 1e-5, "mixer.bias": BIASED}
SEEING_ALL = {"mixer.causal": False}


def _read(keys: Keys) -> EncoderDecoderConfig:
    encoder = read_facts(ENCODER_KEYS, keys, ALWAYS | SEEING_ALL)
    decoder = read_facts(DECODER_KEYS, keys, ALWAYS | {"learned_positions": fields.learned_positions()})
    crossing = layers_of(decoder | SEEING_ALL)[0].attention
    return EncoderDecoderConfig(
        family="whisper",
        encoder=stack_of(AudioConfig, encoder),
        decoder=model_of("whisper", decoder | {"layer.cross": crossing}),
        start_id=keys.count("decoder_start_token_id"),
    )


def _write(config: EncoderDecoderConfig) -> dict[str, Any]:
    keys = write_keys(ENCODER_KEYS, config.encoder) | write_keys(DECODER_KEYS, config.decoder)
    return keys | {"decoder_start_token_id": config.start_id, "is_encoder_decoder": True}


WHISPER = Family("whisper", "WhisperForConditionalGeneration", _read, _write, named(NAMES), copies=((HEAD, EMBEDDING),))
