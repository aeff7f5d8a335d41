"""WordPiece in GGUF: BERT's rules for text, and words as the longest tokens from their start on.

llama.cpp puts `▁` before every word and looks tokens up as they are: one that starts a word has the `▁` too, one that
continues it stands without its `##`. Sources: its conversion/bert.py and its tokenizer WPM.
"""

import unicodedata
from typing import Any

from groundup.formats.gguf.container import Value
from groundup.formats.gguf.token_rows import (
    CONTROL,
    UNUSED,
    USER_DEFINED,
    Described,
    Kind,
    Stored,
    around,
    class_and_separators,
    refuse_normalized,
    vocab_of,
)

START, CONTINUED = "▁", "##"
RAW = (CONTROL, USER_DEFINED, UNUSED)  # types of tokens that no word is made of
NORMALIZER = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
MODEL = {"type": "WordPiece", "continuing_subword_prefix": CONTINUED, "max_input_chars_per_word": 100}
LOWERCASE, STRIP_ACCENTS = "normalizer.lowercase", "normalizer.strip_accents"


def _write(described: Described) -> dict[str, Value]:
    spec, normalizer = described.spec, described.spec.get("normalizer") or {}
    _refuse_other_rules(described)
    refuse_normalized(described)
    stored = [_stored(token, kind, described) for token, kind in zip(described.tokens, described.types, strict=True)]
    if len(set(stored)) < len(stored):
        twice = next(token for token in stored if stored.count(token) > 1)
        raise described.refusal(f"two tokens would both be {twice!r} for llama.cpp")
    front, _, behind = _around_of(described)
    accents = normalizer["strip_accents"]
    return {
        "tokens": stored,
        "bos_token_id": described.tokens.index(front),
        "seperator_token_id": described.tokens.index(behind),
        "unknown_token_id": described.tokens.index(spec["model"]["unk_token"]),
        LOWERCASE: normalizer["lowercase"],
        **({} if accents is None else {STRIP_ACCENTS: accents}),
    }


def _refuse_other_rules(described: Described) -> None:
    """Raise UserError for text that is not cut as llama.cpp cuts it."""
    spec = described.spec
    for part, wanted in (("normalizer", NORMALIZER), ("pre_tokenizer", {"type": "BertPreTokenizer"}), ("model", MODEL)):
        for name, value in wanted.items():
            if (found := (spec.get(part) or {}).get(name)) != value:
                raise described.refusal(f"`{part}.{name}` is {found!r}; llama.cpp's WordPiece has {value!r}")
    if spec["model"]["unk_token"] not in described.tokens:
        raise described.refusal("`model.unk_token` is no token, and llama.cpp's WordPiece needs one for unknown words")


def _around_of(described: Described) -> tuple[str, None, str]:
    match around(described.spec):
        case [str(front), None, str(behind)] if {front, behind} <= set(described.tokens):
            return front, None, behind
        case other:
            raise described.refusal(
                f"text is encoded with {other} around it; llama.cpp's WordPiece has one token in front and one behind"
            )


def _stored(token: str, kind: int, described: Described) -> str:
    """What llama.cpp looks a token up by."""
    if kind in RAW:
        if not any(_cuts(letter) for letter in token):
            raise described.refusal(f"added token {token!r} would be found within words by llama.cpp")
        return token
    if token.startswith(CONTINUED + START):
        raise described.refusal(f"token {token!r} would start a word for llama.cpp")
    return token.removeprefix(CONTINUED) if token.startswith(CONTINUED) else START + token


def _cuts(letter: str) -> bool:
    """Whether a character stands within no word."""
    return letter.isspace() or unicodedata.category(letter).startswith("P") or letter in "$+<=>^`|~"


def _spelled(token: str, kind: int) -> str:
    if kind in RAW:
        return token
    return token.removeprefix(START) if token.startswith(START) else CONTINUED + token


def _read(stored: Stored) -> dict[str, Any]:
    accents = stored.get(STRIP_ACCENTS)
    return {
        "normalizer": {**NORMALIZER, "strip_accents": accents, "lowercase": stored.get(LOWERCASE, True)},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": class_and_separators(stored),
        "decoder": {"type": "WordPiece", "prefix": CONTINUED, "cleanup": True},
        "model": {**MODEL, "unk_token": stored.tokens[stored.ids["unk"]], "vocab": vocab_of(stored)},
    }


WORDPIECE = Kind(
    "bert",
    _write,
    _read,
    _spelled,
    special={"cls": "bos", "unk": "unknown", "sep": "seperator", "pad": "padding", "mask": "mask"},
    needed=("cls", "unk", "sep"),
    defaults={"cls": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103},
)
