"""Tokenizer and chat template in GGUF, out of a Hugging Face folder and back.

Byte-level BPE, WordPiece and SentencePiece's BPE, each of which llama.cpp knows by rules of its own. `tokenizer.json`
itself goes along under the key that the specification has for it, so that nothing is lost on the way back; files that
lack it are read by the rest.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from groundup.errors import UserError
from groundup.formats.folder import read_object
from groundup.formats.gguf.byte_level import BYTE_LEVEL
from groundup.formats.gguf.container import GgufFile, Value, refusal
from groundup.formats.gguf.sentencepiece import SENTENCEPIECE
from groundup.formats.gguf.token_rows import (
    GGML,
    NORMAL,
    Described,
    Kind,
    Stored,
    added_tokens,
    is_filler,
    list_of,
    rows_of,
    text_of,
)
from groundup.formats.gguf.wordpiece import WORDPIECE
from groundup.storage import write_atomically, write_json

JSON_KEY, TEMPLATE_KEY = "tokenizer.huggingface.json", "tokenizer.chat_template"
KINDS = {kind.model: kind for kind in (BYTE_LEVEL, WORDPIECE, SENTENCEPIECE)}


def vocabulary_of_folder(folder: Path, vocab_size: int) -> dict[str, Value]:
    """The keys for the tokenizer and chat template of a folder.

    vocab_size: rows of the model's embedding; those without a token get a name of their own.
    Raises UserError, naming the file and what it is, for a tokenizer that llama.cpp would not understand alike.
    """
    path = folder / "tokenizer.json"
    text, spec = _read_tokenizer(path)
    settings = _settings(folder / "tokenizer_config.json")
    kind = _kind_of(spec, path)
    tokens, types = rows_of(spec, path, vocab_size)
    named = {name: text_of(settings.get(f"{name}_token")) for name in kind.special}
    ids = {name: tokens.index(token) for name, token in named.items() if token in tokens}
    generation = _settings(folder / "generation_config.json").get("eos_token_id")
    stops = [one for one in generation if one != ids.get("eos")] if isinstance(generation, list) else []
    found: dict[str, Value] = {
        "model": kind.model,
        "tokens": tokens,
        "token_type": types,
        **{f"{kind.special[name]}_token_id": index for name, index in ids.items()},
        **({"eot_token_id": stops[0]} if stops else {}),
        **kind.write(Described(path, spec, settings, tokens, types)),
    }
    template = _template(folder, settings)
    return {
        **{GGML + name: value for name, value in found.items()},
        JSON_KEY: text,
        **({} if template is None else {TEMPLATE_KEY: template}),
    }


def write_vocabulary(file: GgufFile, folder: Path) -> dict[str, Any]:
    """Write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` into an existing folder.

    Returns the ids that `save_model` wants: `bos_id`, `eos_ids` and `pad_id`.
    Raises UserError, naming the key, for a tokenizer that is missing, unknown or inconsistent.
    """
    kind, stored = _stored(file)
    inner, text = _tokenizer_of(kind, stored)
    tokens, ids = stored.tokens, stored.ids
    if any(inner.token_to_id(token) != index for index, token in enumerate(tokens) if not is_filler(token, index)):
        raise refusal(file.path, f"`{JSON_KEY}` and `{GGML}tokens` do not name the same tokens")
    write_atomically(folder / "tokenizer.json", text)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{f"{name}_token": tokens[ids[name]] for name in kind.special if name in ids},
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
        },
    )
    if isinstance(template := file.metadata.get(TEMPLATE_KEY), str):
        write_atomically(folder / "chat_template.jinja", template)
    eos = list(dict.fromkeys(ids[name] for name in ("eos", "eot") if name in ids))
    last = ids.get("eos")
    return {"bos_id": ids.get("bos", last), "eos_ids": eos or None, "pad_id": ids.get("pad", last)}


def _settings(path: Path) -> dict[str, Any]:
    """The object of a JSON file, or {} where there is none."""
    return read_object(path) if path.is_file() else {}


def _read_tokenizer(path: Path) -> tuple[str, dict[str, Any]]:
    """The text of a tokenizer.json, and what it says with all defaults filled in."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; a GGUF file holds the tokenizer too")
    spec = _settings(path)
    try:
        whole = json.loads(tokenizers.Tokenizer.from_str(json.dumps(spec)).to_str())
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{path}: not a whole tokenizer ({error})") from None
    whole["model"]["vocab"] = spec["model"]["vocab"]  # where a token has two names the library keeps one
    return path.read_text(encoding="utf-8"), whole


def _kind_of(spec: Mapping[str, Any], path: Path) -> Kind:
    model, decoder = spec["model"], (spec.get("decoder") or {}).get("type")
    if model["type"] == "WordPiece":
        return WORDPIECE
    if model["type"] == "BPE" and model["byte_fallback"]:
        return SENTENCEPIECE
    if model["type"] != "BPE" or decoder != "ByteLevel":
        raise UserError(
            f"{path}: only byte-level BPE, BPE with bytes for unknown characters, and WordPiece go into GGUF here, "
            f"not {model['type']} with {decoder}"
        )
    return BYTE_LEVEL


def _template(folder: Path, keys: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    found = keys.get("chat_template")
    return found if isinstance(found, str) else None


def _stored(file: GgufFile) -> tuple[Kind, Stored]:
    model, tokens = file.metadata.get(f"{GGML}model"), list_of(file, "tokens", str)
    if model not in KINDS:
        raise refusal(file.path, f"tokenizer {model!r} is not known; known are {', '.join(KINDS)}")
    types = list_of(file, "token_type", int) if f"{GGML}token_type" in file.metadata else [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise refusal(file.path, f"`{GGML}token_type` has {len(types)} entries for {len(tokens)} tokens")
    kind = KINDS[model]
    spelled = [kind.spelled(token, type_) for token, type_ in zip(tokens, types, strict=True)]
    return kind, Stored(file, spelled, types, _special_ids(file, kind, len(tokens)))


def _special_ids(file: GgufFile, kind: Kind, count: int) -> dict[str, int]:
    """The ids of the special tokens that a file names, or that llama.cpp takes for it."""
    ids = {}
    for name, spelled in {**kind.special, "eot": "eot"}.items():
        key = f"{GGML}{spelled}_token_id"
        usual = kind.defaults.get(name)
        index = file.metadata.get(key, usual if usual is not None and usual < count else None)
        if index is None and name in kind.needed:
            index = "absent"
        if index is not None and not (isinstance(index, int) and 0 <= index < count):
            raise refusal(file.path, f"`{key}` is {index!r}, which is no id of {count} tokens")
        if index is not None:
            ids[name] = index
    return ids


def _tokenizer_of(kind: Kind, stored: Stored) -> tuple[tokenizers.Tokenizer, str]:
    """The tokenizer in a file, and its tokenizer.json."""
    text = stored.file.metadata.get(JSON_KEY)
    if not isinstance(text, str):
        added = added_tokens(stored.tokens, stored.types)
        parts = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **kind.read(stored)}
        text = json.dumps(parts, ensure_ascii=False, indent=2) + "\n"
    try:
        return tokenizers.Tokenizer.from_str(text), text
    except Exception as error:  # the library raises nothing narrower
        raise refusal(stored.file.path, f"its tokens and merges make no tokenizer ({error})") from None
