"""Settings of the stages `tokenizer` and `tokens`, and the control tokens that every vocabulary begins with."""

from dataclasses import dataclass

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
_SMALLEST_VOCABULARY = len(CONTROL_TOKENS) + 256


@dataclass(frozen=True)
class TokenizerConfig:
    """How the byte-level BPE tokenizer is trained."""

    vocab_size: int = setting(4096, "number of tokens, bytes and control tokens included")
    sample_bytes: int = setting(256_000_000, "learn from at most this many bytes, taken evenly over the documents")

    def __post_init__(self) -> None:
        if self.vocab_size < _SMALLEST_VOCABULARY:
            raise ValueError(
                f"`vocab_size` must be at least {_SMALLEST_VOCABULARY} "
                f"(256 bytes and {len(CONTROL_TOKENS)} control tokens), not {self.vocab_size}"
            )
        # The trainer counts pairs in 32 bits: a pair seen 2**31 times would wrap around and silently be lost.
        if not 0 < self.sample_bytes < 2**31:
            raise ValueError(f"`sample_bytes` must be between 1 and {2**31 - 1}, not {self.sample_bytes}")


@dataclass(frozen=True)
class TokensConfig:
    """How the corpus is stored as tokens."""

    shard_tokens: int = setting(100_000_000, "tokens per shard file at most; a longer document has a shard of its own")

    def __post_init__(self) -> None:
        if self.shard_tokens < 1:
            raise ValueError(f"`shard_tokens` must be at least 1, not {self.shard_tokens}")
