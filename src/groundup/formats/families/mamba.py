"""Mamba and Mamba-2: layers of a state space alone (Gu and Dao 2023; Dao and Gu 2024)."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from groundup.formats.families.llama import ACTIVATIONS, activation_name
from groundup.formats.family import Family
from groundup.formats.keys import Keys
from groundup.formats.rules import Joined, Rule, same, with_biases
from groundup.model.config import ModelConfig
from groundup.model.recurrent_specs import Mamba, Mamba2
from groundup.model.specs import LayerSpec, Mixer, Norm

MIXER = "layers.*.mixer."
NAMES = {
    "embedding.weight": "backbone.embeddings.weight",
    "layers.*.mixer_norm.weight": "backbone.layers.*.norm.weight",
    "final_norm.weight": "backbone.norm_f.weight",
    "head.weight": "lm_head.weight",
}
# Within a layer's mixer: ours → on disk.
MIXER_NAMES = {
    "convolution.weight": "conv1d.weight",
    "skip": "D",
    "output.weight": "out_proj.weight",
}
MAMBA_NAMES = {"selection.weight": "x_proj.weight", "step.weight": "dt_proj.weight", "step_bias": "dt_proj.bias"}
MAMBA2_NAMES = {"step_bias": "dt_bias", "log_rate": "A_log", "norm_weight": "norm.weight"}
# How weights start, how the scan is computed, and in which type layers are added up (here that of all activations).
WITHOUT_EFFECT = (
    "chunk_size rescale_prenorm_residual residual_in_fp32 time_step_floor time_step_init_scheme time_step_max "
    "time_step_min time_step_scale use_associative_scan use_mambapy"
).split()
# What published files repeat of the configurations that they were converted from.
REPEATED = "d_inner d_model fused_add_norm n_layer pad_vocab_size_multiple".split()
# A state holds any length; a file that we train says how long its texts were.
ANY_LENGTH = 1_048_576


def mixer_rules(block: str) -> list[Rule]:
    """Rules for Mamba's mixer, whose tensors have names that begin with `block` on disk."""
    names = {MIXER + ours: block + disk for ours, disk in (MIXER_NAMES | MAMBA_NAMES).items()}
    parts = (f"{MIXER}input.weight", f"{MIXER}gate.weight")
    rates = Rule((f"{MIXER}log_rate",), (f"{block}A_log",), Joined(transposed=True))
    return with_biases([*same(names), rates, Rule(parts, (f"{block}in_proj.weight",), Joined())])


def _mamba_rules(config: ModelConfig) -> Sequence[Rule]:
    return [*same(NAMES), *mixer_rules("backbone.layers.*.mixer.")]


def _mamba2_rules(config: ModelConfig) -> Sequence[Rule]:
    block = "backbone.layers.*.mixer."
    names = {MIXER + ours: block + disk for ours, disk in (MIXER_NAMES | MAMBA2_NAMES).items()}
    parts = (f"{MIXER}gate.weight", f"{MIXER}input.weight", f"{MIXER}step.weight")
    return [*same(NAMES), *with_biases([*same(names), Rule(parts, (f"{block}in_proj.weight",), Joined())])]


def _former(rules: Sequence[Rule]) -> list[Rule]:
    """The rules with the embedding's name of before transformers 4.39."""
    old = "backbone.embedding.weight"
    return [replace(rule, disk=(old,)) if rule.ours == ("embedding.weight",) else rule for rule in rules]


def _read_base(keys: Keys, family: str, mixer: Mixer, tied: bool) -> ModelConfig:
    """A model of layers with this mixer alone. tied: the family's default."""
    keys.without_effect(*WITHOUT_EFFECT, *REPEATED)
    keys.fixed(rms_norm=True)
    keys.off("ssm_cfg")
    norm = Norm("rms", keys.positive("layer_norm_epsilon", default=1e-5))
    return ModelConfig(
        family=family,
        vocab_size=keys.size("vocab_size"),
        width=keys.size("hidden_size"),
        layers=(LayerSpec(mixer, None, norm),) * keys.size("num_hidden_layers"),
        final_norm=norm,
        tied_head=keys.flag("tie_word_embeddings", default=tied),
        max_positions=keys.size("max_position_embeddings", default=ANY_LENGTH),
    )


def _write_base(config: ModelConfig, mixer: Mamba | Mamba2) -> dict[str, Any]:
    """The keys that both families have."""
    return {
        "conv_kernel": mixer.kernel,
        "expand": expansion(mixer, config.width),
        "hidden_act": activation_name(mixer.activation),
        "hidden_size": config.width,
        "layer_norm_epsilon": config.layers[0].norm.eps,
        "num_hidden_layers": len(config.layers),
        "state_size": mixer.state,
        "tie_word_embeddings": config.tied_head,
        "use_bias": mixer.bias,
        "use_conv_bias": mixer.convolution_bias,
        "vocab_size": config.vocab_size,
        **({} if config.max_positions == ANY_LENGTH else {"max_position_embeddings": config.max_positions}),
    }


def expansion(mixer: Mamba | Mamba2, width: int) -> int:
    """How many times wider than the model the mixer is. Raises ValueError for what is no whole number."""
    if mixer.channels % width:
        raise ValueError(f"published families have a multiple of the width ({width}) as channels, not {mixer.channels}")
    return mixer.channels // width


def _read_mamba(keys: Keys) -> ModelConfig:
    width = keys.size("hidden_size")
    mixer = Mamba(
        channels=width * keys.size("expand", default=2),
        state=keys.size("state_size", default=16),
        rank=keys.size_or_auto("time_step_rank", auto=-(-width // 16)),
        kernel=keys.size("conv_kernel", default=4),
        activation=keys.choice("hidden_act", among=ACTIVATIONS, default="silu"),
        bias=keys.flag("use_bias", default=False),
        convolution_bias=keys.flag("use_conv_bias", default=True),
    )
    keys.fixed(intermediate_size=mixer.channels)
    return _read_base(keys, "mamba", mixer, tied=True)


def _write_mamba(config: ModelConfig) -> dict[str, Any]:
    mixer = config.layers[0].mixer
    assert isinstance(mixer, Mamba)
    own = {"intermediate_size": mixer.channels, "time_step_rank": mixer.rank}
    return _write_base(config, mixer) | own


def _read_mamba2(keys: Keys) -> ModelConfig:
    # Its gate comes before the norm in any case, also where a published file says `norm_before_gate`.
    keys.without_effect("norm_before_gate", "time_step_rank")
    mixer = Mamba2(
        heads=keys.size("num_heads", default=128),
        head_dim=keys.size("head_dim", default=64),
        state=keys.size("state_size", default=128),
        groups=keys.size("n_groups", default=8),
        norm=Norm("rms", keys.positive("layer_norm_epsilon", default=1e-5)),
        kernel=keys.size("conv_kernel", default=4),
        activation=keys.choice("hidden_act", among=ACTIVATIONS, default="silu"),
        bias=keys.flag("use_bias", default=False),
        convolution_bias=keys.flag("use_conv_bias", default=True),
        step_limits=keys.limits("time_step_limit"),
    )
    expanded = keys.size("hidden_size") * keys.size("expand", default=2)
    if mixer.channels != expanded:
        raise ValueError(f"`num_heads` times `head_dim` must be `expand` times `hidden_size` ({expanded})")
    keys.fixed(intermediate_size=expanded)
    return _read_base(keys, "mamba2", mixer, tied=False)


def _write_mamba2(config: ModelConfig) -> dict[str, Any]:
    mixer = config.layers[0].mixer
    assert isinstance(mixer, Mamba2)
    own = {"head_dim": mixer.head_dim, "n_groups": mixer.groups, "num_heads": mixer.heads}
    # Left out where there are none: JSON has no word for infinity.
    limits = {} if mixer.step_limits == (0.0, math.inf) else {"time_step_limit": list(mixer.step_limits)}
    return _write_base(config, mixer) | own | limits


MAMBA = Family(
    "mamba",
    "MambaForCausalLM",
    _read_mamba,
    _write_mamba,
    _mamba_rules,
    other_rules=(lambda config: _former(_mamba_rules(config)),),
)
MAMBA2 = Family(
    "mamba2",
    "Mamba2ForCausalLM",
    _read_mamba2,
    _write_mamba2,
    _mamba2_rules,
    other_rules=(lambda config: _former(_mamba2_rules(config)),),
)
