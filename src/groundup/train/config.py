"""Settings of pre-training."""

from dataclasses import dataclass
from typing import Any, Literal

from groundup.model.presets import PRESETS, presets_by_kind
from groundup.settings import setting

Precision = Literal["auto", "bfloat16", "float32"]
Compile = Literal["auto", "always", "never"]
# Spelled out, so that no library is loaded to parse a command; a test holds it against `quantize/matrix.py`.
Format = Literal["w8", "w4", "w4_g32"]

# Text that a held-out figure is taken from, where there is more: half a minute of two cores for a small model.
HELDOUT_MEGABYTES = 1.0

# The default of a setting until the preset is known.
BY_PRESET: Any = None
# What the settings of these names are where nothing else is said, and what some presets have instead (docs/log.md).
USUAL: dict[str, float] = {
    "context": 512,
    "matrix_learning_rate": 0.04,
    "embedding_learning_rate": 0.3,
    "head_learning_rate": 0.004,
    "warmup": 0.0,
    "mask_fraction": 0.15,
}
OF_PRESET: dict[str, dict[str, float]] = {
    "bert": {"context": 128, "mask_fraction": 0.4},
    "modernbert": {"mask_fraction": 0.3},
    "t5": {"matrix_learning_rate": 0.01},
}


def _by_preset(name: str, help: str) -> str:
    """The help of a setting whose default depends on the preset."""
    others = "".join(f"; {preset}: {own[name]:g}" for preset, own in OF_PRESET.items() if name in own)
    return f"{help} (default: {USUAL[name]:g}{others})"


@dataclass(frozen=True)
class PretrainConfig:
    """Pre-training of a model from random weights.

    One dial, `depth`, sets the other sizes; one budget (`minutes`, `epochs`, `tokens` or `flops`) sets how
    long it takes.
    """

    preset: str = setting(
        "nanochat",
        "family of the model; "
        + "; ".join(f"{kind}: {', '.join(names)}" for kind, names in presets_by_kind().items())
        + ". transformers loads all but gpt3, palm and groundup, which learns fastest (in equal time 0.98 bits "
        "per byte against nanochat's 1.13 and llama's 1.39: docs/log.md)",
        choices=tuple(PRESETS),
    )
    depth: int = setting(4, "number of layers, of an encoder-decoder in either; the width follows, 64 per layer")
    width: int | None = setting(None, "model width, when it should not follow from the depth")
    head_dim: int | None = setting(None, "width of an attention head (default: the preset's own, 64 or 128)")
    context: int = setting(BY_PRESET, _by_preset("context", "tokens a row holds and the model can look back"))
    minutes: float | None = setting(
        None, "budget: wall-clock minutes, compilation included (default: 5)", one_of="budget"
    )
    epochs: float | None = setting(None, "budget: passes over the text", one_of="budget")
    tokens: int | None = setting(None, "budget: tokens to train on", one_of="budget")
    flops: float | None = setting(None, "budget: floating-point operations of training", one_of="budget")
    batch_tokens: int = setting(4096, "tokens per optimizer step, over all ranks")
    micro_batch_tokens: int = setting(8192, "tokens per forward pass; lower it when memory is short")
    matrix_learning_rate: float = setting(
        BY_PRESET, _by_preset("matrix_learning_rate", "Muon's, for the matrices inside the layers")
    )
    embedding_learning_rate: float = setting(
        BY_PRESET,
        _by_preset("embedding_learning_rate", "AdamW's, for the embedding, at width 768; scales with 1/sqrt(width)"),
    )
    head_learning_rate: float = setting(
        BY_PRESET,
        _by_preset("head_learning_rate", "AdamW's, for the output head and a tied embedding; scales likewise"),
    )
    weight_decay: float = setting(0.0, "Muon's, applied only where it agrees with the update")
    warmup: float = setting(
        BY_PRESET, _by_preset("warmup", "part of the budget in which the learning rate rises from 0")
    )
    cooldown: float = setting(0.65, "last part of the budget, in which the learning rate falls linearly to 0")
    mask_fraction: float = setting(
        BY_PRESET, _by_preset("mask_fraction", "encoders: share of the tokens that are to be guessed")
    )
    load_balance_loss: float | None = setting(
        None, "experts: factor on the load-balance loss of each layer (default: 0.01; 0.0001 with router corrections)"
    )
    router_z_loss: float | None = setting(
        None, "experts: factor on the z-loss of each layer's router (default: 0.001; 0 with router corrections)"
    )
    router_correction: float | None = setting(
        None, "experts: how far a step moves a router's correction of an expert's score (default: 0.001)"
    )
    precision: Precision = setting("auto", "of activations and matrix products; weights are float32 in any case")
    compile: Compile = setting(
        "auto", "torch.compile; auto: where a compiler exists and the budget repays its start-up"
    )
    quantize: Format | None = setting(
        None,
        "in the last fifth of the budget, learn with activations and, more and more, weights rounded as `groundup "
        "quantize` will store them; held-out figures are those of the rounded model (default: not at all)",
    )
    evaluations: int = setting(8, "how often held-out loss and samples are taken on the way")
    heldout_megabytes: float = setting(
        HELDOUT_MEGABYTES, "held-out text scored at the end: at most so much, spread over all there is; 0: all"
    )
    checkpoint_minutes: float = setting(2.0, "minutes between checkpoints to resume from")
    sample_prompts: tuple[str, ...] = setting(
        ("import ", "def ", "The "), "texts that the samples on the way go on from"
    )
    seed: int = setting(0, "of weights and of data order")
    track: tuple[str, ...] = setting((), "also send metrics to: tensorboard, wandb (needs the extra `track`)")

    def __post_init__(self) -> None:
        for name, value in (USUAL | OF_PRESET.get(self.preset, {})).items():
            if getattr(self, name) is BY_PRESET:
                object.__setattr__(self, name, value)
        for name in ("depth", "context", "batch_tokens", "micro_batch_tokens", "minutes", "epochs", "tokens", "flops"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"`{name}` must be positive, not {value}")
        given = [name for name in ("minutes", "epochs", "tokens", "flops") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one budget, not {' and '.join(given)}")
        if self.heldout_megabytes < 0:
            raise ValueError(f"`heldout_megabytes` must be positive, or 0 for all, not {self.heldout_megabytes}")
        if self.batch_tokens % self.context:
            raise ValueError(f"`batch_tokens` ({self.batch_tokens}) must be a multiple of `context` ({self.context})")
        if self.warmup + self.cooldown > 1:
            raise ValueError("`warmup` and `cooldown` together must not pass 1")
        if not 0 < self.mask_fraction < 1:
            raise ValueError(f"`mask_fraction` must lie between 0 and 1, not {self.mask_fraction}")
