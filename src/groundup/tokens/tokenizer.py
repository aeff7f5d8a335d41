"""Byte-level BPE: training it on a corpus, and text ⇄ token ids without a way from text to a control token.

The folder that training writes is a Hugging Face tokenizer (`tokenizer.json`, `tokenizer_config.json`,
`chat_template.jinja`). `transformers.AutoTokenizer` loads it and encodes the same, apart from two habits of that
library: it puts `<|begin_of_text|>` first unless told `add_special_tokens=False`, and it reads the text `<|user|>` as the
control token unless told `split_special_tokens=True`. `Tokenizer` does neither.

Source: Sennrich et al. 2016 (BPE), Radford et al. 2019 (bytes as alphabet); the splitting pattern follows OpenAI's
cl100k_base, changed for Python source as noted at `PATTERN`.
"""

import codecs
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from groundup.errors import UserError
from groundup.record.metrics import Progress
from groundup.storage import write_atomically, write_json
from groundup.tokens.config import CONTROL_TOKENS, TokenizerConfig
from groundup.tokens.documents import count_documents, read_documents

TOKENIZER_FILE = "tokenizer.json"

# No piece holds punctuation on both sides of letters, so no merge can ever spell out a control token.
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)


class Tokenizer:
    """Text ⇄ token ids.

    vocab_size: number of tokens; ids are 0 … vocab_size - 1.
    control: id of each control token, by its text.
    """

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        self._inner = inner
        # Text that spells a control token is encoded as the ordinary characters it consists of.
        self._inner.encode_special_tokens = True
        self.vocab_size: int = inner.get_vocab_size()
        self.control = {token: inner.token_to_id(token) for token in CONTROL_TOKENS}
        self.bos_id = self.control["<|begin_of_text|>"]
        self.eos_id = self.control["<|end_of_text|>"]
        self.pad_id = self.control["<|pad|>"]
        self.end_id = self.control["<|end|>"]
        self._bytes = _bytes_of_tokens(inner)
        self._control_text = {index: token for token, index in self.control.items()}

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read `tokenizer.json` of a folder.

        Raises UserError where it is missing, unreadable, or lacks one of groundup's control tokens.
        """
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise UserError(f"{path}: no such file; a tokenizer or model folder holds it")
        try:
            inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{path}: not a tokenizer ({error}); train it anew or copy the whole file") from error
        for token in CONTROL_TOKENS:
            if inner.token_to_id(token) is None:
                raise UserError(f"{path}: no control token `{token}`; use a tokenizer that groundup has trained")
        return cls(inner)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`: nothing is added, and no control token appears whatever the text says."""
        ids: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode`, for many texts on all cores."""
        return [encoding.ids for encoding in self._inner.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], keep_control: bool = False) -> str:
        """The text of token ids; control tokens are left out, or written as `<|user|>` with `keep_control`.

        Bytes that are not UTF-8 become U+FFFD. Raises ValueError for an id outside the vocabulary.
        """
        return b"".join(self.bytes_of(index, keep_control) for index in ids).decode("utf-8", errors="replace")

    def bytes_of(self, index: int, keep_control: bool = False) -> bytes:
        """The bytes of text that a token stands for: none for a control token unless `keep_control`."""
        if not 0 <= index < self.vocab_size:
            raise ValueError(f"token id {index} is outside the vocabulary of {self.vocab_size}")
        if keep_control and index in self._control_text:
            return self._control_text[index].encode()
        return self._bytes[index]

    def token_bytes(self) -> npt.NDArray[np.int32]:
        """How many bytes of text each token stands for: (vocab,) int32, 0 for control tokens."""
        return np.array([len(piece) for piece in self._bytes], dtype=np.int32)


class TextStream:
    """Text from token ids that arrive one by one: an incomplete character is held back until its last byte is there."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, index: int) -> str:
        """The text that token `index` completes, often its own, sometimes empty; control tokens are left out."""
        return self._decoder.decode(self._tokenizer.bytes_of(index))

    def finish(self) -> str:
        """What was held back at the end: U+FFFD for a character that was never completed, else empty."""
        return self._decoder.decode(b"", final=True)


def run(config: TokenizerConfig, out: Path, *, corpus: Path) -> None:
    """The stage `tokenizer`: train on `corpus/train.parquet` and write a Hugging Face tokenizer folder.

    `summary.json` holds `vocab_size`, `control_tokens` (their number), `documents` and `bytes` that were learned from,
    `bytes_per_token` on those, and `longest_tokens` (text of the twenty longest).
    """
    source = corpus / "train.parquet"
    sample = Sample(source, config.sample_bytes)
    with Progress("tokenizer", total=count_documents(source), unit="documents") as progress:
        inner = train(sample.texts(progress), config.vocab_size)
    if sample.documents == 0:
        raise UserError(f"{source}: no documents to learn a tokenizer from; see `rejected.parquet` beside it for why")
    write_atomically(out / TOKENIZER_FILE, inner.to_str(pretty=True) + "\n")
    write_json(out / "tokenizer_config.json", transformers_settings())
    write_json(out / "summary.json", {"vocab_size": inner.get_vocab_size(), "documents": sample.documents})


def train(batches: Iterator[list[str]], vocab_size: int) -> tokenizers.Tokenizer:
    """A tokenizer trained on batches of text: at most `vocab_size` tokens, fewer where the text has no more to merge.

    The same texts in the same order give the same tokenizer, on any number of threads.
    """
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[tokenizers.AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS],
        # All 256 bytes, whether or not the text holds them: then every text can be encoded.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(batches, trainer=trainer)
    begin = CONTROL_TOKENS[0]
    inner.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, inner.token_to_id(begin))]
    )
    return inner


class Sample:
    """The documents to learn from: all, or evenly chosen by their id where they are more than `limit_bytes`."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self.path = path
        self.documents = 0
        self.bytes = 0
        total = sum(len(text.encode()) for _, texts in read_documents(path) for text in texts)
        self._share = min(1.0, limit_bytes / max(total, 1))

    def texts(self, progress: Progress) -> Iterator[list[str]]:
        for ids, texts in read_documents(self.path):
            chosen = [text for index, text in zip(ids, texts, strict=True) if _place(index) < self._share]
            self.documents += len(chosen)
            self.bytes += sum(len(text.encode()) for text in chosen)
            progress.advance(len(texts))
            yield chosen


def transformers_settings() -> dict[str, object]:
    """`tokenizer_config.json` as transformers 5 writes it."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|end_of_text|>",
        "pad_token": "<|pad|>",
        "extra_special_tokens": list(CONTROL_TOKENS[3:]),
        "clean_up_tokenization_spaces": False,
    }


def _place(document_id: str) -> float:
    """A number in [0, 1) that depends on the document's id alone."""
    return int.from_bytes(hashlib.blake2b(document_id.encode(), digest_size=8).digest(), "little") / 2**64


def _bytes_of_tokens(inner: tokenizers.Tokenizer) -> list[bytes]:
    """The bytes behind each id; b"" for control tokens."""
    byte_of = {character: value for value, character in enumerate(_byte_alphabet())}
    controls = set(CONTROL_TOKENS)
    pieces = [b""] * inner.get_vocab_size()
    for token, index in inner.get_vocab().items():
        if token not in controls:
            pieces[index] = bytes(byte_of[character] for character in token)
    return pieces


def _byte_alphabet() -> list[str]:
    """The printable character by which byte-level BPE writes each of the 256 bytes (GPT-2's `bytes_to_unicode`)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(value if value in printable else next(others)) for value in range(256)]
