"""Tiny models of `transformers`, the reference for every family, with values that differ from all defaults."""

from typing import Any

import torch
import transformers
from tiny_keys import RMS, rotary
from torch import nn
from torch.overrides import TorchFunctionMode
from variants_deepseek import VARIANTS as DEEPSEEK
from variants_delta import VARIANTS as DELTA
from variants_gemma_olmo import VARIANTS as GEMMA_OLMO
from variants_gpt import VARIANTS as GPT
from variants_mamba import VARIANTS as MAMBA
from variants_mixtral import VARIANTS as MIXTRAL
from variants_phi_cohere import VARIANTS as PHI_COHERE

# Variant: (class name without Config, keys). The first word of a variant is the family.
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", RMS | rotary()),
    "llama tied": ("Llama", RMS | rotary() | {"tie_word_embeddings": True}),
    "llama one kv head": ("Llama", RMS | rotary() | {"num_key_value_heads": 1}),
    "llama all kv heads": ("Llama", RMS | rotary() | {"num_key_value_heads": 4}),
    "llama wide heads": ("Llama", RMS | rotary() | {"head_dim": 12}),
    "llama biases": ("Llama", RMS | rotary() | {"attention_bias": True, "mlp_bias": True}),
    "llama exact gelu": ("Llama", RMS | rotary() | {"hidden_act": "gelu"}),
    "llama linear": ("Llama", RMS | rotary("linear", factor=3.0)),
    "llama dynamic": ("Llama", RMS | rotary("dynamic", factor=3.0) | {"max_position_embeddings": 16}),
    "llama llama3": (
        "Llama",
        RMS
        | rotary(
            "llama3",
            factor=4.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
    "llama yarn": ("Llama", RMS | rotary("yarn", factor=4.0, original_max_position_embeddings=32)),
    "llama yarn, all its keys": (
        "Llama",
        RMS
        | rotary(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=4096,
            beta_fast=16.0,
            beta_slow=2.0,
            mscale=0.8,
            mscale_all_dim=0.5,
            truncate=False,
        )
        | {"head_dim": 24},
    ),
    "mistral": ("Mistral", RMS | rotary() | {"sliding_window": 8}),
    "mistral window longer than the text": ("Mistral", RMS | rotary() | {"sliding_window": 50}),
    "mistral no window": ("Mistral", RMS | rotary() | {"sliding_window": None, "head_dim": 12}),
    "qwen2": ("Qwen2", RMS | rotary()),
    "qwen2 tied, windows": (
        "Qwen2",
        RMS
        | rotary()
        | {"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", RMS | rotary() | {"head_dim": 12}),
    "qwen3 biases, windows": (
        "Qwen3",
        RMS
        | rotary()
        | {
            "head_dim": 16,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 8,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "smollm3": ("SmolLM3", RMS | rotary() | {"num_hidden_layers": 4}),
    "smollm3 chosen layers": ("SmolLM3", RMS | rotary() | {"no_rope_layers": [0, 1], "tie_word_embeddings": False}),
    "nanochat": ("NanoChat", RMS | rotary()),
    "nanochat tied": ("NanoChat", RMS | rotary() | {"tie_word_embeddings": True}),
    "nanochat all kv heads": ("NanoChat", RMS | rotary() | {"num_key_value_heads": 4}),
    "nanochat low softcap": ("NanoChat", RMS | rotary() | {"final_logit_softcapping": 2.0}),
    "nanochat biases": ("NanoChat", RMS | rotary() | {"attention_bias": True}),
}
DECODERS |= MAMBA
DECODERS |= DEEPSEEK
DECODERS |= DELTA
DECODERS |= GEMMA_OLMO
DECODERS |= GPT
DECODERS |= MIXTRAL
DECODERS |= PHI_COHERE


class Float64Everywhere(TorchFunctionMode):
    """Turns the reference's detours through float32 (norms, softmax, rotary tables) into float64.

    Without it `model.double()` still rounds to seven digits, too coarse to tell a small mistake from rounding.
    """

    def __enter__(self) -> "Float64Everywhere":
        self._default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        super().__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        torch.set_default_dtype(self._default)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.Tensor.float, torch.Tensor.bfloat16):  # the latter for Falcon's distances
            return args[0].double()
        wide = [torch.float64 if value is torch.float32 else value for value in args]
        return function(*wide, **{k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()})


def reference(variant: str, hot: bool, **changes: Any) -> nn.Module:
    """A model of `transformers` with random weights: as it initialises them, or hot."""
    name, keys = DECODERS[variant]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**keys | changes)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    if hot:
        heat_reference(model)
    return model


@torch.no_grad()
def heat_reference(model: nn.Module) -> None:
    """Re-randomise every weight in place, so that a missing or misplaced part changes the logits."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith(("dt_bias", "dt_proj.bias")):  # published steps are so small that a state would hardly show
            parameter.copy_(noise)
        elif name.endswith("linear_attn.A_log"):  # as initialised most heads forget everything from token to token
            parameter.copy_(0.5 * noise - 2)
        elif parameter.ndim < 2:
            parameter.add_(0.5 * noise)
        elif ".conv" in name:
            parameter.copy_(2 * noise / parameter[0].numel() ** 0.5)
        elif any(word in name for word in ("embed", "wte", "wpe", "shared.weight")):
            parameter.copy_(noise)
        else:
            parameter.copy_(2 * noise / parameter.shape[-1] ** 0.5)
    for name, buffer in model.named_buffers():
        if name.endswith(("e_score_correction_bias", "expert_bias")):
            buffer.copy_(0.5 * torch.randn(buffer.shape, generator=generator))
