"""What the tokenizers of llama.cpp share: a text and a kind for each row of the embedding, and what stands around text.

`Described` is a tokenizer on its way into a file, `Stored` one on its way out; a `Kind` is a way to cut text that
llama.cpp has, as two functions between them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groundup.errors import UserError
from groundup.formats.gguf.container import GgufFile, Value, refusal

GGML = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # token types
# Special tokens as tokenizer_config.json calls them → as the key of their id does.
IDS = {"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "mask": "mask"}
# No option of a BPE that llama.cpp has.
FOREIGN_OPTIONS = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")


@dataclass(frozen=True)
class Described:
    """A tokenizer.json with all its fields, the settings beside it, and text and type of each row of the embedding."""

    path: Path
    spec: Mapping[str, Any]
    settings: Mapping[str, Any]
    tokens: list[str]
    types: list[int]

    def refusal(self, what: str) -> UserError:
        return UserError(f"{self.path}: {what}")


@dataclass(frozen=True)
class Stored:
    """The tokenizer of a file; tokens: as tokenizer.json spells them; ids: of special tokens by their names."""

    file: GgufFile
    tokens: list[str]
    types: list[int]
    ids: Mapping[str, int]

    def get(self, name: str, default: Any = None) -> Any:
        return self.file.metadata.get(GGML + name, default)


@dataclass(frozen=True)
class Kind:
    """One `tokenizer.ggml.model`.

    write: its own keys, without what all begin with. Raises UserError for what llama.cpp would understand otherwise.
    read: the parts of tokenizer.json between the added tokens and the end. Raises UserError for what it cannot say.
    spelled: a token of a type, as tokenizer.json has it.
    special: names of the special tokens → as the keys of their ids call them; needed: those without which none works.
    defaults: the ids that llama.cpp takes where no key says them.
    """

    model: str
    write: Callable[[Described], dict[str, Value]]
    read: Callable[[Stored], dict[str, Any]]
    spelled: Callable[[str, int], str] = lambda token, kind: token
    special: Mapping[str, str] = field(default_factory=lambda: IDS)
    needed: tuple[str, ...] = ("eos",)
    defaults: Mapping[str, int] = field(default_factory=dict)


def rows_of(spec: Mapping[str, Any], path: Path, vocab_size: int) -> tuple[list[str], list[int]]:
    """Text and type of each row of the embedding; rows without a token get a name of their own."""
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    types = [UNUSED] * vocab_size
    added = {one["id"]: one for one in spec.get("added_tokens", [])}
    named = {index: token for token, index in spec["model"]["vocab"].items()}
    for index, token in (named | {index: one["content"] for index, one in added.items()}).items():
        if index >= vocab_size:
            raise UserError(f"{path}: token {token!r} has the id {index}, the model only {vocab_size} rows")
        tokens[index] = token
        types[index] = NORMAL if index not in added else CONTROL if added[index]["special"] else USER_DEFINED
    for one in added.values():
        if trimming := [name for name in ("lstrip", "rstrip", "single_word") if one.get(name)]:
            raise UserError(f"{path}: token {one['content']!r} has `{trimming[0]}`, which GGUF cannot say")
    return tokens, types


def is_filler(token: str, index: int) -> bool:
    """Whether a row has no token."""
    return token == f"[PAD{index}]"


def text_of(token: Any) -> Any:
    """A token that tokenizer_config.json names, as text or as an object."""
    return token.get("content") if isinstance(token, dict) else token


def refuse_options(described: Described, *options: str) -> None:
    """Raise UserError for an option that is on in the tokenizer's model."""
    for option in options:
        if value := described.spec["model"].get(option):
            raise described.refusal(f"`{option}` is {value!r}, which llama.cpp has not")


def refuse_normalized(described: Described) -> None:
    """Raise UserError for added tokens that are looked for in text after it was changed, unlike in llama.cpp."""
    for one in described.spec.get("added_tokens", []):
        if one.get("normalized"):
            raise described.refusal(f"token {one['content']!r} has `normalized`, which GGUF cannot say")


def around(spec: Mapping[str, Any]) -> list[str | None]:
    """The tokens that stand around a text, which is None among them; nothing where nothing is added."""
    processor = spec.get("post_processor") or {}
    parts = processor.get("processors", []) if processor.get("type") == "Sequence" else [processor]
    for part in parts:
        if part.get("type") == "TemplateProcessing":
            return [piece.get("SpecialToken", {}).get("id") for piece in part["single"]]
        if part.get("type") == "BertProcessing":
            return [part["cls"][0], None, part["sep"][0]]
    return []


def added_around(described: Described) -> dict[str, Value]:
    """The keys that say whether text gets the token for its begin in front, and that for its end behind."""
    found = around(described.spec)
    names = [text_of(described.settings.get(f"{name}_token")) for name in ("bos", "eos")]
    begins, ends = bool(found) and found[0] is not None, bool(found) and found[-1] is not None
    if found != [*names[:1] * begins, *[None] * bool(found), *names[1:] * ends]:
        raise described.refusal(f"text is encoded with {found} around it; GGUF can say no more than {names}")
    return {"add_bos_token": begins, "add_eos_token": ends}


def list_of(file: GgufFile, name: str, kind: type) -> list[Any]:
    """A list of a file's tokenizer. Raises UserError for another thing."""
    found = file.metadata.get(GGML + name)
    if not isinstance(found, list) or not all(isinstance(one, kind) for one in found):
        raise refusal(file.path, f"`{GGML}{name}` is missing or no list of {kind.__name__}")
    return found


def added_tokens(tokens: Sequence[str], types: Sequence[int]) -> list[dict[str, Any]]:
    """The tokens that are looked for before any text is cut."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": index, "content": token, **plain, "special": kind != USER_DEFINED}
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, UNKNOWN, USER_DEFINED)
    ]


def vocab_of(stored: Stored) -> dict[str, int]:
    """The tokens that text is made of, and the added ones."""
    return {
        token: index
        for index, (token, kind) in enumerate(zip(stored.tokens, stored.types, strict=True))
        if kind != UNUSED and not is_filler(token, index)
    }


def begin_and_end(stored: Stored, begins: bool = False) -> dict[str, Any] | None:
    """The post-processor that the keys ask for; begins: whether there is a token in front where no key says it."""
    wanted = {"bos": stored.get("add_bos_token", begins), "eos": stored.get("add_eos_token", False)}
    used = [name for name, is_added in wanted.items() if is_added and name in stored.ids]
    if not used:
        return None
    begin, end = ([_special(stored, name, 0)] if name in used else [] for name in wanted)
    pair = [*begin, _text("A", 0), *end, *begin, _text("B", 1), *end]
    return template(stored, [*begin, _text("A", 0), *end], pair, used)


def class_and_separators(stored: Stored) -> dict[str, Any]:
    """The post-processor of BERT: its first token, and one that ends each of two texts."""
    one = [_special(stored, "cls", 0), _text("A", 0), _special(stored, "sep", 0)]
    return template(stored, one, [*one, _text("B", 1), _special(stored, "sep", 1)], ["cls", "sep"])


def template(
    stored: Stored, single: list[dict[str, Any]], pair: list[dict[str, Any]], names: Sequence[str]
) -> dict[str, Any]:
    """A post-processor; names: the special tokens in it."""
    tokens = {stored.tokens[stored.ids[name]]: stored.ids[name] for name in names}
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": pair,
        "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]} for token, index in tokens.items()},
    }


def _special(stored: Stored, name: str, kind: int) -> dict[str, Any]:
    return {"SpecialToken": {"id": stored.tokens[stored.ids[name]], "type_id": kind}}


def _text(name: str, kind: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": kind}}
