"""Rotary positions in a config.json: v4 keys (`rope_theta`, `rope_scaling`) and v5 keys (`rope_parameters`).

We read both and write v4's, which both generations of `transformers` read.
"""

import math
from collections.abc import Mapping
from typing import Any

from groundup.formats.keys import Keys
from groundup.model.rotary import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Rope,
    RopeScaling,
    YarnScaling,
)

# What the kinds of scaling are called, and those of their fields that are called otherwise here.
KINDS: dict[type, str] = {
    LinearScaling: "linear",
    DynamicScaling: "dynamic",
    Llama3Scaling: "llama3",
    YarnScaling: "yarn",
    LongRopeScaling: "longrope",
}
NAMES = {
    "low_frequency_factor": "low_freq_factor",
    "high_frequency_factor": "high_freq_factor",
    "original": "original_max_position_embeddings",
    "short": "short_factor",
    "long": "long_factor",
}


def read_rope(
    keys: Keys,
    head_dim: int,
    positions: int,
    *,
    theta: float = 10_000.0,
    fraction: float | None = 1.0,
    original: int | None = None,
    **pairing: bool,
) -> Rope:
    """The rotary positions that the keys describe.

    positions: the model's longest sequence; theta, fraction, original: the family's defaults for the base, for the part
    of each head that is rotated (`partial_rotary_factor`; None: it has no such key and rotates whole heads) and for
    `original_max_position_embeddings`; pairing: `interleaved`, `reversed`.
    """
    old = keys.positive("rope_theta", default=theta)
    share = 1.0 if fraction is None else keys.positive("partial_rotary_factor", default=fraction)
    original = keys.optional_size("original_max_position_embeddings", default=original)
    new, scaling = keys.table("rope_parameters"), keys.table("rope_scaling")
    table = new or scaling
    if table is not None:
        old = table.positive("rope_theta", default=old)
        share = share if fraction is None else table.positive("partial_rotary_factor", default=share)
        # The number beside the table comes first, as in `transformers`.
        inside = table.optional_size("original_max_position_embeddings")
        original = original or inside
    dims = int(head_dim * share)
    stretched = None if table is None else _read_table(table, dims, positions, original)
    return Rope(old, None if dims == head_dim else dims, scaling=stretched, **pairing)


def write_rope(rope: Rope, head_dim: int) -> dict[str, Any]:
    """The keys that `read_rope` reads."""
    keys: dict[str, Any] = {"rope_theta": rope.theta, "rope_scaling": _write_scaling(rope.scaling)}
    if rope.dims is not None:
        share = rope.dims / head_dim
        # Readers round down, and so may lose two of the dimensions: 44 · (30 / 44) is less than 30.
        keys["partial_rotary_factor"] = share if int(head_dim * share) == rope.dims else math.nextafter(share, 1)
    if isinstance(rope.scaling, LongRopeScaling):
        keys["original_max_position_embeddings"] = rope.scaling.original
    return keys


def longrope_attention_factor(factor: float, original: int) -> float:
    """What queries and keys grow by where a file does not say; factor: of the longest text (Ding et al. 2024)."""
    if original < 2:
        raise ValueError("`original_max_position_embeddings` must be at least 2")
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def read_ropes(keys: Keys, head_dim: int, positions: int, thetas: Mapping[str, tuple[str, float]]) -> dict[str, Rope]:
    """The rotary positions of each kind of layer, in families that always rotate whole heads.

    In v5 each kind has a table of its own; in v4 `rope_scaling` is for layers of full attention alone.
    thetas: for each kind, v4's key for the base, and the base where a file does not say.
    """
    tables, scaling = keys.table("rope_parameters"), keys.table("rope_scaling")
    original = keys.optional_size("original_max_position_embeddings")
    ropes = {}
    for kind, (name, default) in thetas.items():
        own = None if tables is None else tables.table(kind)
        table = own or (scaling if kind == "full_attention" else None)
        theta = keys.positive(name, default=default)
        if table is None:
            ropes[kind] = Rope(theta)
            continue
        theta = table.positive("rope_theta", default=theta)
        within = table.optional_size("original_max_position_embeddings", default=original)
        ropes[kind] = Rope(theta, scaling=_read_table(table, head_dim, positions, within))
    if tables is not None:
        _refuse_unread(tables)
    return ropes


def write_ropes(ropes: Mapping[str, Rope], thetas: Mapping[str, tuple[str, float]]) -> dict[str, Any]:
    """The keys that `read_ropes` reads, in both generations.

    v4's alone would not do: v5 takes OLMo 3's `rope_theta` for layers of full attention only.
    """
    usual = ropes.get("full_attention") or next(iter(ropes.values()))
    scalings = {kind: _write_scaling(rope.scaling) for kind, rope in ropes.items()}
    return {
        thetas["full_attention"][0]: usual.theta,  # also where all layers have windows, or v4 would have none at all
        **{thetas[kind][0]: rope.theta for kind, rope in ropes.items()},
        "rope_scaling": scalings.get("full_attention"),
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": rope.theta} | (scalings[kind] or {})
            for kind, rope in ropes.items()
        },
    }


def _read_table(table: Keys, dims: int, positions: int, original: int | None) -> RopeScaling | None:
    """How positions are stretched; nothing of the table may be left that was not understood."""
    stretched = _read_scaling(table, positions, original)
    if isinstance(stretched, LongRopeScaling) and {len(stretched.short), len(stretched.long)} != {dims // 2}:
        raise ValueError(f"`short_factor` and `long_factor` must have {dims // 2} numbers each")
    _refuse_unread(table)
    return stretched


def _refuse_unread(table: Keys) -> None:
    if unread := table.unread():
        raise ValueError(f"`{unread[0]}` is not a key that rotary positions of this kind have here")


def _read_scaling(table: Keys, positions: int, original: int | None) -> RopeScaling | None:
    kinds = ("default", *KINDS.values(), "su")
    kind = table.choice("rope_type", "type", among={kind: kind for kind in kinds}, default="default")
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(table.positive("factor"))
    if kind == "dynamic":
        return DynamicScaling(table.positive("factor"), positions)
    if kind == "llama3":
        low, high = table.positive("low_freq_factor"), table.positive("high_freq_factor")
        return Llama3Scaling(table.positive("factor"), low, high, original or positions)
    within = original or positions
    factor = table.optional_positive("factor") or positions / within
    given = table.optional_positive("attention_factor")
    if kind == "yarn":
        derived = _yarn_attention_factor(table, factor)  # read in any case: DeepSeek scales its scores by one of them
        given = given or derived
        fast, slow = table.optional_positive("beta_fast"), table.optional_positive("beta_slow")
        return YarnScaling(factor, within, given, fast or 32.0, slow or 1.0, table.flag("truncate", default=True))
    given = given or longrope_attention_factor(factor, within)
    return LongRopeScaling(table.positives("short_factor"), table.positives("long_factor"), within, given)


def _yarn_attention_factor(table: Keys, factor: float) -> float:
    """By the two `mscale` keys where both are given (DeepSeek), else by the factor alone."""
    scales = table.optional_positive("mscale"), table.optional_positive("mscale_all_dim")
    if factor <= 1:
        return 1.0
    above, below = (1 + 0.1 * (scale or 1.0) * math.log(factor) for scale in scales)
    return above / below if all(scales) else 1 + 0.1 * math.log(factor)


def _write_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    fields = {
        NAMES.get(name, name): list(one) if isinstance(one, tuple) else one for name, one in vars(scaling).items()
    }
    if isinstance(scaling, DynamicScaling):  # its original length is the model's
        del fields[NAMES["original"]]
    return {"rope_type": KINDS[type(scaling)]} | fields
