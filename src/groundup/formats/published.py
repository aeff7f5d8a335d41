"""The tokenizers of published folders, as their `tokenizer.json` says them, for text in and out.

Two ways to write bytes are understood, which nearly all models that write have: byte-level (GPT-2, Llama 3, Qwen, OLMo,
SmolLM), and SentencePiece's, where `▁` is a space and `<0xE4>` a byte that no other token has (Llama 2, Gemma, Mistral,
T5). Source: the library `tokenizers`, whose decoders these are.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from groundup.errors import UserError
from groundup.formats.folder import CONFIG, GENERATION, read_object
from groundup.tokens.text import TOKENIZER_FILE, TextTokenizer, byte_alphabet, read_tokenizer
from groundup.tokens.tokenizer import Tokenizer, what_it_lacks

_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
# What a part of a tokenizer that may put a space before a text is when it does not.
_UNPREFIXED: dict[str, dict[str, Any]] = {
    "Prepend": {"prepend": ""},
    "Metaspace": {"prepend_scheme": "never"},
    "ByteLevel": {"add_prefix_space": False},
}
_BYTE_OF = {character: value for value, character in enumerate(byte_alphabet())}


def load_tokenizer(folder: Path) -> TextTokenizer:
    """The tokenizer of a model folder: a `Tokenizer` if groundup has trained it.

    Raises UserError where it is missing or unreadable, and for one that writes bytes in another way than those above.
    """
    inner = read_tokenizer(folder)
    return PublishedTokenizer(inner, folder) if what_it_lacks(inner) is not None else Tokenizer(inner)


class PublishedTokenizer(TextTokenizer):
    """What was read from a folder, whose other files say what ends a text.

    What stands around a text is what the tokenizer's own post-processor puts there.
    """

    def __init__(self, inner: tokenizers.Tokenizer, folder: Path) -> None:
        vocabulary: dict[str, int] = inner.get_vocab()
        pieces = [b""] * _vocab_size(vocabulary, folder / TOKENIZER_FILE)
        spec = json.loads(inner.to_str())
        added = {one["content"]: one["id"] for one in spec["added_tokens"]}
        end_ids = _end_ids(folder, added)
        special = {one["content"] for one in spec["added_tokens"] if one["special"]}
        control = {token: index for token, index in added.items() if token in special or index in end_ids}
        spelled, self._begins_with_space = _spelling(spec, folder / TOKENIZER_FILE)
        for token in vocabulary.keys() - control.keys():
            pieces[vocabulary[token]] = spelled(token)
        closed = _closed(spec, control)
        bare = closed | {part: _unprefixed(closed[part]) for part in ("normalizer", "pre_tokenizer")}
        inner = _made_of(closed)
        beginning, ending = _around_text(inner)
        behind = None if bare == closed else _made_of(bare)
        super().__init__(inner, pieces, control, beginning, ending, end_ids, behind)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without the space that many of these tokenizers put before every text."""
        text = self.spell(ids)
        return text.removeprefix(" ") if self._begins_with_space else text


def _spelling(spec: Mapping[str, Any], path: Path) -> tuple[Callable[[str], bytes], bool]:
    """How the decoder makes bytes of a token, and whether it takes a space away from the beginning of a text.

    Raises UserError for a decoder that does something else.
    """
    decoder, model = spec["decoder"] or {"type": "none"}, spec["model"]["type"]
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    if model not in ("BPE", "Unigram"):
        raise UserError(f"{path}: text is cut by BPE or Unigram here, not by {model}; give token ids")
    if [step["type"] for step in steps] == ["ByteLevel"]:
        learned = dict(spec["model"]["vocab"])
        return lambda token: _of_byte_level(token) if token in learned else token.encode(), False
    bytes_fall_back, begins_with_space, spaces = False, False, False
    for step in steps:
        match step:
            case {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}:
                spaces = True
            case {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme}:
                spaces, begins_with_space = True, scheme != "never"
            case {"type": "Strip", "content": " ", "start": 1, "stop": 0}:
                begins_with_space = True
            case {"type": "ByteFallback"}:
                bytes_fall_back = True
            case {"type": "Fuse"}:
                pass
            case _:
                spaces = False
                break
    if not spaces:
        named = " → ".join(step["type"] for step in steps)
        raise UserError(f"{path}: its decoder ({named}) is neither byte-level nor SentencePiece's; give token ids")
    return lambda token: _of_sentencepiece(token, bytes_fall_back), begins_with_space


def _of_byte_level(token: str) -> bytes:
    """A token that was learned; one that the alphabet of bytes cannot write is plain text, as those that were added."""
    try:
        return bytes(_BYTE_OF[character] for character in token)
    except KeyError:
        return token.encode()


def _of_sentencepiece(token: str, bytes_fall_back: bool) -> bytes:
    if bytes_fall_back and (byte := _BYTE.fullmatch(token)):
        return bytes.fromhex(byte[1])
    return token.replace("▁", " ").encode()


def _vocab_size(vocabulary: Mapping[str, int], path: Path) -> int:
    """Raises UserError where most ids below the highest are no tokens: nobody should wait for all of them."""
    size = 1 + max(vocabulary.values(), default=-1)
    if size > 2 * len(vocabulary):
        raise UserError(f"{path}: {len(vocabulary)} tokens have ids up to {size - 1}; copy it again")
    return size


def _end_ids(folder: Path, added: Mapping[str, int]) -> tuple[int, ...]:
    """The tokens that end a text, by the first file that names any. Those that were learned are text and end none."""
    files = {GENERATION: "eos_token_id", "tokenizer_config.json": "eos_token", CONFIG: "eos_token_id"}
    ids = set(added.values())
    for name, key in files.items():
        found = read_object(folder / name).get(key) if (folder / name).is_file() else None
        # A token's text may come with the ways in which it is found in other texts.
        named = found.get("content") if isinstance(found, dict) else found
        token_ids = [added.get(named)] if isinstance(named, str) else named if isinstance(named, list) else [named]
        if known := tuple(one for one in token_ids if type(one) is int and one in ids):
            return known
    return ()


def _closed(spec: Mapping[str, Any], control: Collection[str]) -> dict[str, Any]:
    """The same tokenizer without a way from text to a control token, and without cutting and padding texts.

    The library does not look for control tokens in text if told so, but the model finds those that are in its own
    vocabulary, too: Unigram by their score, BPE where a merge makes one. Such tokens get names that no text has: where
    the model looks for tokens, a space is none any more.
    """
    model, hidden = dict(spec["model"]), {token: f" {token}" for token in control}
    if model["type"] == "Unigram":
        model["vocab"] = [(hidden.get(token, token), score) for token, score in model["vocab"]]
    else:
        model["vocab"] = {hidden.get(token, token): index for token, index in model["vocab"].items()}
        model["merges"] = [pair for pair in model["merges"] if hidden.keys().isdisjoint((*pair, "".join(pair)))]
        model["unk_token"] = hidden.get(model["unk_token"], model["unk_token"])
    added = [
        one | {"content": hidden.get(one["content"], one["content"]), "special": one["content"] in control}
        for one in spec["added_tokens"]
    ]
    return {**spec, "model": model, "added_tokens": added, "truncation": None, "padding": None}


def _unprefixed(part: Any) -> Any:
    """A part of a tokenizer, or a list of parts, that puts nothing before a text."""
    if isinstance(part, list):
        return [_unprefixed(one) for one in part]
    if not isinstance(part, dict):
        return part
    return {key: _unprefixed(value) for key, value in part.items()} | _UNPREFIXED.get(part.get("type", ""), {})


def _made_of(spec: Mapping[str, Any]) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps(spec))


def _around_text(inner: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """What the post-processor puts before a text and behind it."""
    encoding = inner.encode("a")
    places = [place for place, text in enumerate(encoding.sequence_ids) if text is not None]
    ids: list[int] = encoding.ids
    return (ids[: places[0]], ids[places[-1] + 1 :]) if places else (ids, [])
