"""The arithmetic of training: operations per token, and what a budget of operations takes in time, energy and money.

Source: Chowdhery et al. 2022 (PaLM), appendix B, with the conventions of nanochat's `estimate_flops`.
"""

from groundup.record.cost import (
    DEFAULT_GRID_GRAMS_PER_KWH,
    DEFAULT_WATTS_PER_CORE,
    JOULES_PER_KWH,
    Figure,
    carbon,
    estimated_energy,
)


def training_flops_per_token(matmul_parameters: int, layers: int, width: int, context: int) -> float:
    """Floating-point operations to train on one token: 6 × matmul parameters + 12 × layers × width × context.

    Six per weight: a multiplication and an addition forward, and twice as many backward. Attention adds two products of
    the queries' width with `context` keys and values, at six operations each; it is counted in full and not halved for
    causality, as PaLM and nanochat do, so that utilisation compares with theirs.

    matmul_parameters: all weights that multiply activations. The output head is among them, also when its matrix is the
        embedding's (tied); the embedding look-up, norms and other element-wise work are not.
    width: that of all query heads of a layer together (heads × head size). context: sequence length in tokens.
    """
    return 6.0 * matmul_parameters + 12.0 * layers * width * context


def plan(
    flops: float,
    flops_per_second: float,
    cores: int,
    watts_per_core: float = DEFAULT_WATTS_PER_CORE,
    grid_grams_per_kwh: float = DEFAULT_GRID_GRAMS_PER_KWH,
    price_per_hour: float = 0.0,
    price_per_kwh: float = 0.0,
) -> dict[str, Figure]:
    """What a training of `flops` operations will take: wall_seconds, energy_joules, co2_grams, money; all estimated.

    flops_per_second: what training really reaches on this machine (measured peak × expected utilisation).
    price_per_hour: rent of the machine. price_per_kwh: price of electricity. Money is in whatever currency these are.
    """
    seconds = flops / flops_per_second
    energy = estimated_energy(seconds * cores, watts_per_core)
    money = seconds / 3600 * price_per_hour + energy.value / JOULES_PER_KWH * price_per_kwh
    return {
        "wall_seconds": Figure(
            seconds, "s", "estimated", f"{flops:.3g} operations at {flops_per_second:.3g} per second"
        ),
        "energy_joules": energy,
        "co2_grams": carbon(energy, grid_grams_per_kwh),
        "money": Figure(money, "", "estimated", f"{price_per_hour:g} per hour and {price_per_kwh:g} per kWh"),
    }
