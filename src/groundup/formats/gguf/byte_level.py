"""Byte-level BPE in GGUF: merges, and the rule by which text is cut before them, which llama.cpp knows by name."""

from collections.abc import Mapping
from typing import Any

from groundup.formats.gguf.container import Value, refusal
from groundup.formats.gguf.token_rows import (
    FOREIGN_OPTIONS,
    Described,
    Kind,
    Stored,
    added_around,
    begin_and_end,
    list_of,
    refuse_options,
    vocab_of,
)
from groundup.tokens.config import PATTERNS

LLAMA3 = PATTERNS["qwen2"].replace(r"|\p{N}|", r"|\p{N}{1,3}|")
# How llama.cpp calls a way to cut text → the steps of it in tokenizer.json. GPT-2's pattern is built into ByteLevel.
CUTS: dict[str, list[tuple[Any, ...]]] = {
    "gpt-2": [("ByteLevel", False, True)],
    "qwen2": [("Split", PATTERNS["qwen2"], "Isolated", False), ("ByteLevel", False, False)],
    "llama-bpe": [("Split", LLAMA3, "Isolated", False), ("ByteLevel", False, False)],
}
# Here a word that is a token is taken as it is, whatever the merges say.
WHOLE_WORDS = {"llama-bpe"}


def _write(described: Described) -> dict[str, Value]:
    refuse_options(described, *FOREIGN_OPTIONS, "fuse_unk")
    return {
        "pre": _cut_name(described),
        "merges": [" ".join(pair) for pair in described.spec["model"]["merges"]],
        **added_around(described),
    }


def _cut_name(described: Described) -> str:
    """llama.cpp's name for how text is cut."""
    spec = described.spec
    cut = spec.get("pre_tokenizer") or {}
    steps = [_step(one) for one in (cut.get("pretokenizers", []) if cut.get("type") == "Sequence" else [cut])]
    name = next((name for name, known in CUTS.items() if known == steps), None)
    if name is None:
        raise described.refusal(
            "llama.cpp has no name for how this tokenizer cuts text before merging; "
            f"train one with the pattern qwen2 (known are those of {', '.join(CUTS)})"
        )
    normalizer = (spec.get("normalizer") or {}).get("type")
    # Qwen composes characters first (NFC); llama.cpp does not, and differs on text that is not composed.
    if normalizer is not None and (name, normalizer) != ("qwen2", "NFC"):
        raise described.refusal(f"llama.cpp's {name} has no normalizer, this tokenizer has {normalizer}")
    if bool(spec["model"].get("ignore_merges")) != (name in WHOLE_WORDS):
        raise described.refusal(f"`ignore_merges` must be {str(name in WHOLE_WORDS).lower()} for llama.cpp's {name}")
    return name


def _step(step: Mapping[str, Any]) -> tuple[Any, ...]:
    if step.get("type") == "Split":
        return "Split", step.get("pattern", {}).get("Regex"), step.get("behavior"), step.get("invert", False)
    return step.get("type"), step.get("add_prefix_space"), step.get("use_regex", True)


def _read(stored: Stored) -> dict[str, Any]:
    pre = stored.get("pre")
    if not isinstance(pre, str) or pre not in CUTS:
        known = ", ".join(CUTS)
        raise refusal(stored.file.path, f"tokenizer 'gpt2' with {pre!r} is not known; known are {known}")
    steps = [
        {"type": "Split", "pattern": {"Regex": step[1]}, "behavior": step[2], "invert": step[3]}
        if step[0] == "Split"
        else {"type": "ByteLevel", "add_prefix_space": step[1], "trim_offsets": True, "use_regex": step[2]}
        for step in CUTS[pre]
    ]
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": begin_and_end(stored),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre in WHOLE_WORDS,
            "vocab": vocab_of(stored),
            "merges": [merge.split(" ") for merge in list_of(stored.file, "merges", str)],
        },
    }


BYTE_LEVEL = Kind("gpt2", _write, _read)
