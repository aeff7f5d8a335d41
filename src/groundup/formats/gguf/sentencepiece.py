"""SentencePiece's BPE in GGUF, as LLaMA 2, Mistral and Gemma have it: spaces are `▁`, unknown characters are bytes.

llama.cpp knows no merges. It joins any two neighbours that together are a token, the token with the highest score
first; tokenizer.json lists what may be joined, in order. The two agree where the list holds every pair that makes a
token, all pairs of a token one after the other, as it does where it was made of SentencePiece's own model. Sources: the
tokenizer SPM of llama.cpp; `transformers`, convert_slow_tokenizer.py.
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from groundup.formats.gguf.container import Value, refusal
from groundup.formats.gguf.token_rows import (
    BYTE,
    FOREIGN_OPTIONS,
    GGML,
    NORMAL,
    UNKNOWN,
    Described,
    Kind,
    Stored,
    added_around,
    begin_and_end,
    list_of,
    refuse_normalized,
    refuse_options,
    vocab_of,
)

SPACE = "▁"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
REPLACED = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
PREFIXED = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, REPLACED]}
UNCUT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
# The ways to make spaces `▁`: normalizer and pre-tokenizer → whether one stands before every text.
SPACES: list[tuple[Any, Any, bool]] = [(PREFIXED, None, True), (REPLACED, None, False), (REPLACED, UNCUT, False)]
DECODED: list[dict[str, Any]] = [
    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
STRIPPED = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def _write(described: Described) -> dict[str, Value]:
    refuse_options(described, *FOREIGN_OPTIONS, "ignore_merges")
    refuse_normalized(described)
    model = described.spec["model"]
    if lacking := [byte for byte in BYTES if byte not in model["vocab"]]:
        raise described.refusal(f"token {lacking[0]!r} is missing, and llama.cpp spells unknown characters in bytes")
    tokens, types = list(described.tokens), list(described.types)
    for byte in BYTES:
        index = model["vocab"][byte]
        tokens[index], types[index] = byte, BYTE  # Gemma has a second name for that of a tab
    if model["unk_token"] in tokens:
        types[tokens.index(model["unk_token"])] = UNKNOWN
    return {
        "pre": "default",
        "tokens": tokens,
        "token_type": types,
        "scores": _scores(described, {token for token, kind in zip(tokens, types, strict=True) if kind == NORMAL}),
        "add_space_prefix": _has_prefix(described),
        **added_around(described),
    }


def _has_prefix(described: Described) -> bool:
    """Whether a space is put in front of a text."""
    spec = described.spec
    parts, cut = (spec.get("normalizer"), spec.get("pre_tokenizer")), spec.get("pre_tokenizer") or {}
    for normalizer, pre_tokenizer, prefixed in SPACES:
        if parts == (normalizer, pre_tokenizer):
            return prefixed
    if parts[0] is not None or cut.get("type") != "Metaspace" or cut["replacement"] != SPACE:
        raise described.refusal("llama.cpp has no way to make spaces into tokens as this tokenizer does")
    if cut["split"] and (odd := next((token for token in described.tokens if SPACE in token[1:]), None)):
        raise described.refusal(f"token {odd!r} would join words for llama.cpp, which here are cut before")
    return bool(cut["prepend_scheme"] != "never")


def _scores(described: Described, normal: set[str]) -> list[float]:
    """One for each row: the earlier a token may be made, the higher. Raises UserError where no score can say that."""
    merges = [(left, right) for left, right in described.spec["model"]["merges"] if left + right in normal]
    ranks: dict[str, list[int]] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, []).append(rank)
    made, vocab = set(merges), described.spec["model"]["vocab"]
    for token in normal:
        if other := next((pair for pair in _splits(token, vocab) if pair not in made), None):
            raise described.refusal(f"llama.cpp would join {other} to {token!r}, which `model.merges` does not")
    for token, found in ranks.items():
        if found[-1] - found[0] >= len(found):
            raise described.refusal(
                f"the pairs that make {token!r} are apart in `model.merges`, llama.cpp has one rank"
            )
    return [-float(ranks.get(token, [len(merges)])[0]) for token in described.tokens]


def _splits(token: str, vocab: Mapping[str, int]) -> Iterable[tuple[str, str]]:
    """The pairs of tokens that make up a token, the longest first part first."""
    pairs = ((token[:place], token[place:]) for place in range(len(token) - 1, 0, -1))
    return (pair for pair in pairs if pair[0] in vocab and pair[1] in vocab)


def _read(stored: Stored) -> dict[str, Any]:
    is_prefixed = stored.get("add_space_prefix", True)
    unknown = stored.ids.get("unk")
    return {
        "normalizer": PREFIXED if is_prefixed else REPLACED,
        "pre_tokenizer": None,
        "post_processor": begin_and_end(stored, begins=True),
        "decoder": {"type": "Sequence", "decoders": [*DECODED, *([STRIPPED] if is_prefixed else [])]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None if unknown is None else stored.tokens[unknown],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": (vocab := vocab_of(stored)),
            "merges": _merges(stored, vocab),
        },
    }


def _merges(stored: Stored, vocab: Mapping[str, int]) -> list[list[str]]:
    """Every pair that makes a token, in the order of the scores."""
    scores = list_of(stored.file, "scores", float)
    if len(scores) != len(stored.tokens):
        raise refusal(stored.file.path, f"`{GGML}scores` has {len(scores)} entries for {len(stored.tokens)} tokens")
    made = {
        index: pairs
        for index, (token, kind) in enumerate(zip(stored.tokens, stored.types, strict=True))
        if kind == NORMAL and (pairs := list(_splits(token, vocab)))
    }
    order = sorted(made, key=lambda index: -scores[index])
    for one, other in pairwise(order):
        if scores[one] == scores[other]:
            names = f"{stored.tokens[one]!r} and {stored.tokens[other]!r}"
            raise refusal(stored.file.path, f"the tokens {names} have equal scores, which no order of merges says")
    return [list(pair) for index in order for pair in made[index]]


SENTENCEPIECE = Kind("llama", _write, _read, needed=("bos", "eos"), defaults={"bos": 1, "eos": 2, "unk": 0})
