"""Mamba and Mamba-2: layers of a state space alone (Gu and Dao 2023; Dao and Gu 2024)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from groundup.formats import fields
from groundup.formats.config_map import OFF, Entry, Facts, Field, Several, fixed, norm_of, without_effect
from groundup.formats.family import mapped
from groundup.formats.keys import Keys
from groundup.formats.rules import Joined, Rule, same, with_biases
from groundup.model.config import ModelConfig, StackConfig
from groundup.model.recurrent_specs import Mamba, Mamba2

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
    "time_step_min time_step_scale use_associative_scan use_mambapy "
    # What published files repeat of the configurations that they were converted from.
    "d_inner d_model fused_add_norm n_layer pad_vocab_size_multiple"
)
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


@dataclass(frozen=True)
class Expansion:
    """How many times wider than the model the channels of its mixers are; for its place, see `Field`."""

    place: str

    def read(self, key: str, keys: Keys, facts: Facts) -> None:
        facts[self.place] = facts["width"] * keys.size(key, default=2)

    def write(self, key: str, config: StackConfig) -> dict[str, Any]:
        """Raises ValueError for what is no whole number."""
        mixer = next((layer.mixer for layer in config.layers if isinstance(layer.mixer, Mamba | Mamba2)), None)
        if mixer is None:
            return {}
        if mixer.channels % config.width:
            raise ValueError(
                f"published families have a multiple of the width ({config.width}) as channels, not {mixer.channels}"
            )
        return {key: mixer.channels // config.width}


def rank(place: str) -> Field:
    """The width that step sizes pass through; `auto` is a sixteenth of the model's."""
    return Field(
        place,
        lambda keys, *names, default: keys.size_or_auto(*names, auto=default),
        default=lambda facts: -(-facts["width"] // 16),
    )


def _read_positions(keys: Keys, facts: Facts) -> None:
    facts["max_positions"] = keys.size("max_position_embeddings", default=ANY_LENGTH)


def _write_positions(config: ModelConfig) -> dict[str, Any]:
    return {} if config.max_positions == ANY_LENGTH else {"max_position_embeddings": config.max_positions}


def _read_channels(keys: Keys, facts: Facts) -> None:
    """The width of the mixers follows from other keys, and may not contradict them."""
    keys.fixed(intermediate_size=facts["mamba.channels"])


def _read_expansion(keys: Keys, facts: Facts) -> None:
    """The channels of Mamba-2 are those of its heads."""
    expanded = facts["width"] * keys.size("expand", default=2)
    if facts["mamba2.heads"] * facts["mamba2.head_dim"] != expanded:
        raise ValueError(f"`num_heads` times `head_dim` must be `expand` times `hidden_size` ({expanded})")
    keys.fixed(intermediate_size=expanded)


def _read_limits(keys: Keys, facts: Facts) -> None:
    facts["mamba2.step_limits"] = keys.limits("time_step_limit")


def _write_limits(config: ModelConfig) -> dict[str, Any]:
    """Left out where there are none: JSON has no word for infinity."""
    mixer = config.layers[0].mixer
    assert isinstance(mixer, Mamba2)
    return {} if mixer.step_limits == (0.0, math.inf) else {"time_step_limit": list(mixer.step_limits)}


def _shared_keys(part: str) -> dict[str, Entry]:
    """What both families have, for mixers of this part of a layer."""
    return {
        **without_effect(WITHOUT_EFFECT),
        "rms_norm": fixed(True),
        "ssm_cfg": OFF,
        "hidden_size": fields.WIDTH,
        "num_hidden_layers": fields.LAYERS,
        "max_position_embeddings": Several(_read_positions, _write_positions),
        "layer_norm_epsilon": fields.EPS.usually(1e-5),
        "conv_kernel": Field(f"{part}.kernel", Keys.size, default=4),
        "hidden_act": replace(fields.ACTIVATION.usually("silu"), place=f"{part}.activation"),
        "use_bias": Field(f"{part}.bias", Keys.flag, default=False),
        "use_conv_bias": Field(f"{part}.convolution_bias", Keys.flag, default=True),
        "vocab_size": fields.VOCABULARY,
    }


MAMBA_KEYS = _shared_keys("mamba") | {
    "expand": Expansion("mamba.channels"),
    "state_size": Field("mamba.state", Keys.size, default=16),
    "time_step_rank": rank("mamba.rank"),
    "intermediate_size": Several(_read_channels, lambda config: {"intermediate_size": config.layers[0].mixer.channels}),
    "tie_word_embeddings": fields.TIED.usually(True),
}
MAMBA2_KEYS = _shared_keys("mamba2") | {
    # Its gate comes before the norm in any case, also where a published file says `norm_before_gate`.
    **without_effect("norm_before_gate time_step_rank"),
    "num_heads": Field("mamba2.heads", Keys.size, default=128),
    "head_dim": Field("mamba2.head_dim", Keys.size, default=64),
    "state_size": Field("mamba2.state", Keys.size, default=128),
    "n_groups": Field("mamba2.groups", Keys.size, default=8),
    "expand": Several(_read_expansion, partial(Expansion("mamba2.channels").write, "expand")),
    "time_step_limit": Several(_read_limits, _write_limits),
    "tie_word_embeddings": fields.TIED.usually(False),
}
MAMBA = mapped(
    "mamba",
    "MambaForCausalLM",
    MAMBA_KEYS,
    _mamba_rules,
    always={"layer.mixer": "mamba"},
    other_rules=(lambda config: _former(_mamba_rules(config)),),
)
MAMBA2 = mapped(
    "mamba2",
    "Mamba2ForCausalLM",
    MAMBA2_KEYS,
    _mamba2_rules,
    always={"layer.mixer": "mamba2", "mamba2.norm": norm_of},
    other_rules=(lambda config: _former(_mamba2_rules(config)),),
)
