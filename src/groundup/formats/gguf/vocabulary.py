"""Tokenizer and chat template in GGUF, out of a Hugging Face folder and back.

Byte-level BPE alone: tokens, merges, which tokens are control tokens, and the rule by which text is cut before any
merge, which llama.cpp knows by name. `tokenizer.json` itself goes along under the key that the specification has for
it, so that nothing is lost on the way back; files that lack it are read by the rest.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from groundup.errors import UserError
from groundup.formats.gguf.container import GgufFile, Value, refusal
from groundup.storage import write_atomically, write_json
from groundup.tokens.config import PATTERNS

GGML, JSON_KEY, TEMPLATE_KEY = "tokenizer.ggml.", "tokenizer.huggingface.json", "tokenizer.chat_template"
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # token types
SPECIAL = ("bos", "eos", "unk", "sep", "pad", "mask")

LLAMA3 = PATTERNS["qwen2"].replace(r"|\p{N}|", r"|\p{N}{1,3}|")
# How llama.cpp calls a way to cut text → the steps of it in tokenizer.json. GPT-2's pattern is built into ByteLevel.
CUTS: dict[str, list[tuple[Any, ...]]] = {
    "gpt-2": [("ByteLevel", False, True)],
    "qwen2": [("Split", PATTERNS["qwen2"], "Isolated", False), ("ByteLevel", False, False)],
    "llama-bpe": [("Split", LLAMA3, "Isolated", False), ("ByteLevel", False, False)],
}
# Here a word that is a token is taken as it is, whatever the merges say.
WHOLE_WORDS = {"llama-bpe"}


def vocabulary_of_folder(folder: Path, vocab_size: int) -> dict[str, Value]:
    """The keys for the tokenizer and chat template of a folder.

    vocab_size: rows of the model's embedding; those without a token get a name of their own.
    Raises UserError, naming the file and what it is, for a tokenizer that llama.cpp would not understand alike.
    """
    path = folder / "tokenizer.json"
    text, spec = _read_tokenizer(path)
    keys = _settings(folder / "tokenizer_config.json")
    pre = _cut_name(spec, path)
    tokens, types = _tokens(spec, path, vocab_size)
    special = {name: _special_id(keys.get(f"{name}_token"), tokens) for name in SPECIAL}
    begins, ends = _added_around(spec, path, keys)
    generation = _settings(folder / "generation_config.json").get("eos_token_id")
    stops = [one for one in generation if one != special["eos"]] if isinstance(generation, list) else []
    found: dict[str, Value | None] = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": types,
        "merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in spec["model"]["merges"]],
        **{f"{_id_name(name)}_token_id": index for name, index in special.items()},
        "eot_token_id": stops[0] if stops else None,
        "add_bos_token": begins,
        "add_eos_token": ends,
    }
    template = _template(folder, keys)
    return {
        **{GGML + name: value for name, value in found.items() if value is not None},
        JSON_KEY: text,
        **({} if template is None else {TEMPLATE_KEY: template}),
    }


def write_vocabulary(file: GgufFile, folder: Path) -> dict[str, Any]:
    """Write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` into an existing folder.

    Returns the ids that `save_model` wants: `bos_id`, `eos_ids` and `pad_id`.
    Raises UserError, naming the key, for a tokenizer that is missing, unknown or inconsistent.
    """
    tokens = _list(file, "tokens", str)
    ids = _special_ids(file, len(tokens))
    inner, text = _tokenizer_of(file, tokens, ids)
    if any(inner.token_to_id(token) != index for index, token in enumerate(tokens) if not _is_filler(token, index)):
        raise refusal(file.path, f"`{JSON_KEY}` and `{GGML}tokens` do not name the same tokens")
    write_atomically(folder / "tokenizer.json", text)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{f"{name}_token": tokens[ids[name]] for name in SPECIAL if name in ids},
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
        },
    )
    if isinstance(template := file.metadata.get(TEMPLATE_KEY), str):
        write_atomically(folder / "chat_template.jinja", template)
    eos = list(dict.fromkeys(ids[name] for name in ("eos", "eot") if name in ids))
    return {"bos_id": ids.get("bos", ids["eos"]), "eos_ids": eos, "pad_id": ids.get("pad", ids["eos"])}


def _id_name(name: str) -> str:
    """What a special token is called in the key of its id, which is spelled out for three of them."""
    return {"unk": "unknown", "sep": "seperator", "pad": "padding"}.get(name, name)


def _is_filler(token: str, index: int) -> bool:
    return token == f"[PAD{index}]"


def _settings(path: Path) -> dict[str, Any]:
    """The object of a JSON file, or {} where there is none."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold a JSON object")
    return found


def _read_tokenizer(path: Path) -> tuple[str, dict[str, Any]]:
    """The text of a tokenizer.json and what it says; byte-level BPE without options that llama.cpp has not."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; a GGUF file holds the tokenizer too")
    spec = _settings(path)
    try:
        tokenizers.Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{path}: not a whole tokenizer ({error})") from None
    model, decoder = spec["model"], (spec.get("decoder") or {}).get("type")
    if model.get("type", "BPE") != "BPE" or decoder != "ByteLevel":
        raise UserError(f"{path}: only byte-level BPE goes into GGUF here, not {model.get('type')} with {decoder}")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "fuse_unk"):
        if model.get(option):
            raise UserError(f"{path}: `{option}` is {model[option]!r}, which llama.cpp's byte-level BPE has not")
    return path.read_text(encoding="utf-8"), spec


def _cut_name(spec: Mapping[str, Any], path: Path) -> str:
    """llama.cpp's name for how text is cut."""
    cut = spec.get("pre_tokenizer") or {}
    steps = [_step(one) for one in (cut.get("pretokenizers", []) if cut.get("type") == "Sequence" else [cut])]
    name = next((name for name, known in CUTS.items() if known == steps), None)
    if name is None:
        raise UserError(
            f"{path}: llama.cpp has no name for how this tokenizer cuts text before merging; "
            f"train one with the pattern qwen2 (known are those of {', '.join(CUTS)})"
        )
    normalizer = (spec.get("normalizer") or {}).get("type")
    # Qwen composes characters first (NFC); llama.cpp does not, and differs on text that is not composed.
    if normalizer is not None and (name, normalizer) != ("qwen2", "NFC"):
        raise UserError(f"{path}: llama.cpp's {name} has no normalizer, this tokenizer has {normalizer}")
    if bool(spec["model"].get("ignore_merges")) != (name in WHOLE_WORDS):
        raise UserError(f"{path}: `ignore_merges` must be {str(name in WHOLE_WORDS).lower()} for llama.cpp's {name}")
    return name


def _step(step: Mapping[str, Any]) -> tuple[Any, ...]:
    if step.get("type") == "Split":
        return "Split", step.get("pattern", {}).get("Regex"), step.get("behavior"), step.get("invert", False)
    return step.get("type"), step.get("add_prefix_space"), step.get("use_regex", True)


def _tokens(spec: Mapping[str, Any], path: Path, vocab_size: int) -> tuple[list[str], list[int]]:
    """Text and type of each row of the embedding."""
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


def _special_id(token: Any, tokens: Sequence[str]) -> int | None:
    """The id of a token that tokenizer_config.json names, as text or as an object."""
    text = _text_of(token)
    return tokens.index(text) if text in tokens else None


def _added_around(spec: Mapping[str, Any], path: Path, keys: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether text is encoded with the token for its begin in front, and with that for its end behind."""
    processor = spec.get("post_processor") or {}
    parts = processor.get("processors", []) if processor.get("type") == "Sequence" else [processor]
    single: list[dict[str, Any]] = next(
        (part["single"] for part in parts if part.get("type") == "TemplateProcessing"), []
    )
    around = [piece.get("SpecialToken", {}).get("id") for piece in single]
    names = [_text_of(keys.get(f"{name}_token")) for name in ("bos", "eos")]
    begins, ends = bool(around) and around[0] is not None, bool(around) and around[-1] is not None
    if around != [*names[:1] * begins, *[None] * bool(around), *names[1:] * ends]:
        raise UserError(f"{path}: text is encoded with {around} around it; GGUF can say no more than {names}")
    return begins, ends


def _text_of(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _template(folder: Path, keys: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    found = keys.get("chat_template")
    return found if isinstance(found, str) else None


def _list(file: GgufFile, name: str, kind: type) -> list[Any]:
    found = file.metadata.get(GGML + name)
    if not isinstance(found, list) or not all(isinstance(one, kind) for one in found):
        raise refusal(file.path, f"`{GGML}{name}` is missing or no list of {kind.__name__}")
    return found


def _special_ids(file: GgufFile, count: int) -> dict[str, int]:
    """The ids of the special tokens that a file names; that of the end it must name."""
    ids = {}
    for name in (*SPECIAL, "eot"):
        key = f"{GGML}{_id_name(name)}_token_id"
        index = file.metadata.get(key, None if name != "eos" else "absent")
        if index is not None and not (isinstance(index, int) and 0 <= index < count):
            raise refusal(file.path, f"`{key}` is {index!r}, which is no id of {count} tokens")
        if index is not None:
            ids[name] = index
    return ids


def _tokenizer_of(file: GgufFile, tokens: list[str], ids: Mapping[str, int]) -> tuple[tokenizers.Tokenizer, str]:
    """The tokenizer in a file, and its tokenizer.json."""
    text = file.metadata.get(JSON_KEY)
    if not isinstance(text, str):
        text = json.dumps(_rebuilt(file, tokens, ids), ensure_ascii=False, indent=2) + "\n"
    try:
        return tokenizers.Tokenizer.from_str(text), text
    except Exception as error:  # the library raises nothing narrower
        raise refusal(file.path, f"its tokens and merges make no tokenizer ({error})") from None


def _rebuilt(file: GgufFile, tokens: list[str], ids: Mapping[str, int]) -> dict[str, Any]:
    """The tokenizer.json that says what llama.cpp's keys say."""
    model, pre = (file.metadata.get(GGML + name) for name in ("model", "pre"))
    if model != "gpt2" or not isinstance(pre, str) or pre not in CUTS:
        known = ", ".join(CUTS)
        raise refusal(file.path, f"tokenizer {model!r} with {pre!r} is not known; known is 'gpt2' with {known}")
    types = _list(file, "token_type", int)
    if len(types) != len(tokens):
        raise refusal(file.path, f"`{GGML}token_type` has {len(types)} entries for {len(tokens)} tokens")
    bos = ids.get("bos") if file.metadata.get(f"{GGML}add_bos_token") else None
    steps = [
        {"type": "Split", "pattern": {"Regex": step[1]}, "behavior": step[2], "invert": step[3]}
        if step[0] == "Split"
        else {"type": "ByteLevel", "add_prefix_space": step[1], "trim_offsets": True, "use_regex": step[2]}
        for step in CUTS[pre]
    ]
    added = [(index, token, kind) for index, (token, kind) in enumerate(zip(tokens, types, strict=True))]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": token, **plain, "special": kind == CONTROL}
            for index, token, kind in added
            if kind in (CONTROL, USER_DEFINED)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None if bos is None else _begin_with(tokens[bos], bos),
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
            "vocab": {token: index for index, token, kind in added if kind in (NORMAL, CONTROL, USER_DEFINED)},
            "merges": [merge.split(" ") for merge in _list(file, "merges", str)],
        },
    }


def _begin_with(token: str, index: int) -> dict[str, Any]:
    """The post-processor that puts a token in front."""
    begin = {"SpecialToken": {"id": token, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": kind}} for name, kind in (("A", 0), ("B", 1)))
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, begin, second],
        "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]}},
    }
