"""Settings of the stages `tokenizer` and `tokens`, with the control tokens and splitting patterns that they name."""

from dataclasses import dataclass
from typing import Literal

from groundup.settings import setting

# Their ids are their places here, so they stay the same whatever text the tokenizer is trained on.
CONTROL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|pad|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|document|>",
    "<|tool_call|>",
    "<|tool_result|>",
    "<|end|>",
)
# Control tokens of models that guess hidden text: what stands for a masked token (BERT) and for each hidden span (so
# called by T5). A tokenizer is trained without them, since they would take the place of a hundred merges; pre-training
# appends those that its preset needs, behind all others, so that the same shards serve every preset.
MASK_TOKEN = "<|mask|>"
SENTINEL_TOKENS = tuple(f"<extra_id_{number}>" for number in range(100))
# Where text is cut before any merge; both give each digit a token of its own. A piece with letters in it holds at most
# one other character, in front, so that no merge can ever spell out a control token.
PATTERNS = {
    # `_` counts as a letter: `__init__` is one piece. A line break belongs to the punctuation before it and takes along
    # its indentation but for the last blank, which goes with the next word as it does within a line.
    "code": (
        r"[^\r\n\p{L}\p{M}\p{N}_]?[\p{L}\p{M}_]+"
        r"|\p{N}"
        r"| ?[^\s\p{L}\p{M}\p{N}_]+(?:[\r\n]+(?:[ \t]*(?=[ \t]))?)?"
        r"|\s*[\r\n]+(?:[ \t]*(?=[ \t]))?"
        r"|\s+(?!\S)"
        r"|\s+"
    ),
    # Qwen 2's, letter for letter: llama.cpp knows it by name (`tokenizer.ggml.pre`).
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
        r"|[^\r\n\p{L}\p{N}]?\p{L}+"
        r"|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+"
        r"|\s+(?!\S)"
        r"|\s+"
    ),
}
_SMALLEST_VOCABULARY = len(CONTROL_TOKENS) + 256


@dataclass(frozen=True)
class TokenizerConfig:
    """How the byte-level BPE tokenizer is trained."""

    vocab_size: int = setting(4096, "number of tokens, bytes and control tokens included")
    pattern: Literal["code", "qwen2"] = setting(
        "code",
        "where text is cut before merging: `code` takes 7 % fewer tokens for Python, as many for prose; "
        "`qwen2` is the one of the two that llama.cpp knows",
    )
    sample_bytes: int = setting(256_000_000, "learn from at most this many bytes, taken evenly over the corpus")

    def __post_init__(self) -> None:
        if self.vocab_size < _SMALLEST_VOCABULARY:
            raise ValueError(
                f"`vocab_size` must be at least {_SMALLEST_VOCABULARY} "
                f"(256 bytes and {len(CONTROL_TOKENS)} control tokens), not {self.vocab_size}"
            )
        # The trainer counts pairs in 32 bits: a pair seen 2**31 times would wrap around and silently be lost.
        if not 100_000 <= self.sample_bytes < 2**31:
            raise ValueError(f"`sample_bytes` must be between 100000 and {2**31 - 1}, not {self.sample_bytes}")


@dataclass(frozen=True)
class TokensConfig:
    """How the corpus is stored as tokens."""

    shard_tokens: int = setting(100_000_000, "tokens per shard file at most; a longer document has a shard of its own")

    def __post_init__(self) -> None:
        if self.shard_tokens < 1:
            raise ValueError(f"`shard_tokens` must be at least 1, not {self.shard_tokens}")
