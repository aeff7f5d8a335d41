"""Tokenizers for the tests of GGUF that no stage here trains: BERT's WordPiece and SentencePiece's BPE."""

import inspect
import json
import shutil
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

# Enough of each script for tokens of several characters.
TEXT = [
    inspect.getsource(textwrap),
    "Ein naïves Café in Ångström, élan vital, über alle Maßen; señor, façade, coöperate, Übermut, École",
    "漢字かな交じり文、ひらがな。中文 句子 漢字",
    "한국어 문장 한국",
    "Привет мир, приветствие миру, как дела? Ελληνικά γράμματα και λέξεις",
    "unaffable unaffordable affordable affable running runner runs 2024 1999 3.14",
] * 3
BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def _saved(tokenizer: Tokenizer, folder: Path, **special: str) -> Path:
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {f"{name}_token": token for name, token in special.items()}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | names)
    )
    return folder


def wordpiece(folder: Path, *, lowercase: bool = True, strip_accents: bool | None = None, size: int = 500) -> Path:
    """A folder with BERT's tokenizer, trained on `TEXT`."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=size, special_tokens=BERT_SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return _saved(tokenizer, folder, unk="[UNK]", sep="[SEP]", pad="[PAD]", cls="[CLS]", mask="[MASK]")


def _pieces(size: int) -> list[str]:
    """Tokens of several characters in the order in which a BPE learns them, then the characters."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trained.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=size, special_tokens=[]))
    order = sorted(trained.get_vocab().items(), key=lambda pair: pair[1])
    return [token for token, _ in order if len(token) > 1] + [token for token, _ in order if len(token) == 1]


def _pairs(tokens: Iterable[str]) -> list[tuple[str, str]]:
    """What `transformers` makes of the tokens of SentencePiece: every pair that makes a token, best tokens first."""
    known = list(tokens)
    return [
        (token[:place], token[place:])
        for token in known
        for place in range(len(token) - 1, 0, -1)
        if {token[:place], token[place:]} <= set(known)
    ]


def sentencepiece(folder: Path, *, prefix: bool = True, edit: Callable[[Tokenizer], object] | None = None) -> Path:
    """A folder with a tokenizer as LLaMA 2 has it, or without a space in front of every text as Gemma does."""
    pieces = _pieces(700)
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(names)},
            merges=_pairs(pieces),
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    space = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space]) if prefix else space
    parts: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prefix else parts)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.add_special_tokens(["<|turn|>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", 1)]
    )
    if edit is not None:
        edit(tokenizer)
    return _saved(tokenizer, folder, unk="<unk>", bos="<s>", eos="</s>")


def edited(source: Path, out: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a folder in which tokenizer.json was edited."""
    shutil.copytree(source, out)
    spec = json.loads((out / "tokenizer.json").read_text())
    edit(spec)
    (out / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False))
    return out
