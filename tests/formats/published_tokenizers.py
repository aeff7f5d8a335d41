"""Tokenizers as published folders have them, small: byte-level BPE, SentencePiece's BPE and Unigram."""

import json
from pathlib import Path
from typing import Any

from gguf_tokenizers import TEXT, sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

# What a model of each kind might write or be asked, and what steps on the toes of a tokenizer.
HARD = [
    "unaffable runners, running",
    "  two spaces before,  two within and two behind  ",
    "naïve façade 漢字 한국 Привет",
    "👩‍👩‍👧 and 😀, ∀x",
    "lines\n\n\tand\ttabs\r\n",
    "<|end|> and </s> and <s>, <|turn|><unk><think>x</think>",
    "<s>",
    "</s>",
    " ",
    "a",
]


def _around(begin: str | None, end: str | None, ids: dict[str, int]) -> processors.TemplateProcessing:
    texts = " ".join(one for one in (begin, "$A", end) if one)
    return processors.TemplateProcessing(single=texts, special_tokens=[(one, ids[one]) for one in (begin, end) if one])


def _saved(tokenizer: Tokenizer, folder: Path, **settings: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind | settings))
    return folder


def byte_level(folder: Path, *, begins: bool = True) -> Path:
    """As Llama 3 has it or, where no token begins a text, GPT-2 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=[], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_special_tokens(["<|begin|>", "<|end|>"])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("    ", normalized=False)])
    ids = tokenizer.get_vocab()
    if begins:
        tokenizer.post_processor = processors.Sequence(
            [processors.ByteLevel(trim_offsets=False), _around("<|begin|>", None, ids)]
        )
    return _saved(tokenizer, folder, bos_token="<|begin|>", eos_token={"__type": "AddedToken", "content": "<|end|>"})


def unigram(folder: Path, *, bytes_fall_back: bool = True) -> Path:
    """SentencePiece's Unigram; without bytes for unknown characters as T5 has it, with a token behind every text."""
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        TEXT, trainers.UnigramTrainer(vocab_size=400, special_tokens=["<unk>"], unk_token="<unk>")
    )
    learned = [(token, score) for token, score in json.loads(trained.to_str())["model"]["vocab"] if token != "<unk>"]
    first = ["<pad>", "</s>", "<unk>", *([f"<0x{byte:02X}>" for byte in range(256)] if bytes_fall_back else [])]
    # The letters of `</s>`, so that it can be written without it.
    letters = [(one, -12.0) for one in "</s>" if one not in dict(learned)]
    vocab = [(one, 0.0) for one in first] + learned + letters
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=2, byte_fallback=bytes_fall_back))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    steps = [decoders.ByteFallback(), decoders.Metaspace()] if bytes_fall_back else [decoders.Metaspace()]
    tokenizer.decoder = decoders.Sequence(steps) if bytes_fall_back else steps[0]
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = _around(None, "</s>", tokenizer.get_vocab())
    return _saved(tokenizer, folder, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


MAKERS = {
    "byte-level": byte_level,
    "byte-level, nothing before a text": lambda folder: byte_level(folder, begins=False),
    "SentencePiece": sentencepiece,
    "SentencePiece, no space before a text": lambda folder: sentencepiece(folder, prefix=False),
    "Unigram": unigram,
    "Unigram without bytes": lambda folder: unigram(folder, bytes_fall_back=False),
}
