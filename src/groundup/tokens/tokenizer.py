"""Byte-level BPE: training it on a corpus, and text ⇄ token ids without a way from text to a control token.

The folder that training writes is a Hugging Face tokenizer (`tokenizer.json`, `tokenizer_config.json`,
`chat_template.jinja`). `transformers.AutoTokenizer` loads it and encodes the same, apart from two habits of that
library: it puts `<|begin_of_text|>` first, as for Llama, unless told `add_special_tokens=False`, and it reads the text
`<|user|>` as the control token unless told `split_special_tokens=True`. `Tokenizer` does neither.

Source: Sennrich et al. 2016 (BPE), Radford et al. 2019 (the 256 bytes as alphabet).
"""

import hashlib
import json
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from groundup.errors import UserError
from groundup.record.metrics import Progress
from groundup.storage import hash_file, write_atomically, write_json
from groundup.tokens.config import CONTROL_TOKENS, MASK_TOKEN, PATTERNS, SENTINEL_TOKENS, TokenizerConfig
from groundup.tokens.template import CHAT_TEMPLATE
from groundup.tokens.text import TOKENIZER_FILE, TextTokenizer, byte_alphabet, read_tokenizer

# What a tokenizer may have beyond what it was trained with.
HIDDEN_TEXT_TOKENS = (MASK_TOKEN, *SENTINEL_TOKENS)

# Characters per passage where only a part of the corpus is learned from.
_PASSAGE = 16_384


class Tokenizer(TextTokenizer):
    """One that groundup has trained, with control tokens for conversations and for text that is hidden.

    mask_id, sentinel_ids: of what stands for hidden text, or None and () where pre-training did not append them.
    """

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        vocabulary = inner.get_vocab()
        added = {token.content for token in inner.get_added_tokens_decoder().values()}
        control = {token: vocabulary[token] for token in CONTROL_TOKENS}
        control |= {token: vocabulary[token] for token in HIDDEN_TEXT_TOKENS if token in added}
        self.bos_id = control["<|begin_of_text|>"]
        self.eos_id = control["<|end_of_text|>"]
        self.pad_id = control["<|pad|>"]
        self.end_id = control["<|end|>"]
        self.mask_id = control.get(MASK_TOKEN)
        self.sentinel_ids = tuple(control[token] for token in SENTINEL_TOKENS if token in control)
        pieces = _bytes_of_tokens(inner, control)
        super().__init__(inner, pieces, control, beginning=(self.bos_id,), end_ids=(self.eos_id, self.end_id))

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read `tokenizer.json` of a tokenizer or model folder.

        Raises UserError where it is missing, unreadable, not byte-level, or lacks one of groundup's control tokens.
        """
        inner = read_tokenizer(folder)
        if (lack := what_it_lacks(inner)) is not None:
            raise UserError(f"{folder / TOKENIZER_FILE}: this tokenizer {lack}; use one that groundup has trained")
        return cls(inner)

    def with_control(self, tokens: Sequence[str]) -> "Tokenizer":
        """The same with further control tokens, which take the next free ids; text is encoded as before.

        Raises UserError where text can already produce one of them.
        """
        missing = [token for token in tokens if token not in self.control]
        if not missing:
            return self
        for token in missing:
            if self._inner.token_to_id(token) is not None:
                raise UserError(
                    f"this tokenizer has `{token}` as an ordinary token, not as control token: train it anew"
                )
        inner = tokenizers.Tokenizer.from_str(self._inner.to_str())
        inner.add_special_tokens([_control_token(token) for token in missing])
        return Tokenizer(inner)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`, and `tokenizer_config.json` for transformers."""
        write_atomically(folder / TOKENIZER_FILE, _serialise(self._inner))
        write_json(folder / "tokenizer_config.json", _transformers_config(tuple(self.control)))

    def decode(self, ids: Sequence[int], keep_control: bool = False) -> str:
        """The text of token ids; control tokens are left out, or written as `<|user|>` with `keep_control`.

        Bytes that are not UTF-8 become U+FFFD; ids beyond the vocabulary spell nothing.
        Raises ValueError for an id below 0.
        """
        pieces = (
            self._control_names[index].encode() if keep_control and index in self._control_names else self.piece(index)
            for index in ids
        )
        return b"".join(pieces).decode("utf-8", errors="replace")

    def source(self, text: str) -> list[int]:
        """As such models learn from them: closed by the end of text, with nothing before it."""
        return [*self.encode(text), self.eos_id]

    def token_bytes(self) -> npt.NDArray[np.int32]:
        """How many bytes of text each token stands for: (vocab,) int32, 0 for control tokens."""
        return np.array([len(piece) for piece in self._bytes], dtype=np.int32)


def what_it_lacks(inner: tokenizers.Tokenizer) -> str | None:
    """What keeps this from being a `Tokenizer`, or None."""
    missing = [token for token in CONTROL_TOKENS if inner.token_to_id(token) is None]
    if missing:
        return f"has no control token `{missing[0]}`"
    return None if isinstance(inner.decoder, decoders.ByteLevel) else "is not byte-level"


def require_own(tokenizer: TextTokenizer) -> Tokenizer:
    """The same. Raises UserError for a published one, which has no tokens to make conversations of."""
    if not isinstance(tokenizer, Tokenizer):
        raise UserError(
            "conversations are made of groundup's own control tokens, which the tokenizer of this model lacks; let it "
            "go on from texts, or use a model that groundup has trained"
        )
    return tokenizer


def run(config: TokenizerConfig, out: Path, *, corpus: Path) -> None:
    """The stage `tokenizer`: train on `corpus/train.parquet` and write a Hugging Face tokenizer folder.

    `summary.json` holds `vocab_size`, `control_tokens` (their number), `corpus_bytes`, `sample_bytes` (about how many
    of them were learned from) and `longest_words` (the twenty tokens with the most letters).
    Raises UserError where there is no text to learn from.
    """
    from groundup.tokens.documents import count_text_bytes

    source = corpus / "train.parquet"
    corpus_bytes = count_text_bytes(source)
    if corpus_bytes == 0:
        raise UserError(f"{source}: no text to learn a tokenizer from; `rejected.parquet` beside it says why")
    share = min(1.0, config.sample_bytes / corpus_bytes)
    with Progress("tokenizer", total=share * corpus_bytes, unit="B") as progress:
        inner = train(_watched(sample(source, share), progress), config.vocab_size, PATTERNS[config.pattern])
    tokenizer = Tokenizer(inner)
    tokenizer.save(out)
    write_atomically(out / "chat_template.jinja", CHAT_TEMPLATE)
    write_json(out / "summary.json", _summary(tokenizer, corpus_bytes, share))


def train(batches: Iterator[list[str]], vocab_size: int, pattern: str) -> tokenizers.Tokenizer:
    """Learn `vocab_size` tokens from batches of text, or fewer where the text has nothing more to merge.

    The same text gives the same tokenizer, on any number of threads and however it is cut into batches.
    pattern: regular expression (Oniguruma) of the pieces that merges never cross.
    """
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_control_token(token) for token in CONTROL_TOKENS],
        # All 256 bytes, whether or not the text holds them, so that every text can be encoded.
        initial_alphabet=sorted(byte_alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(batches, trainer=trainer)
    begin = CONTROL_TOKENS[0]
    inner.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, inner.token_to_id(begin))]
    )
    return inner


def sample(source: Path, share: float) -> Iterator[list[str]]:
    """The texts of a documents file or, where `share` is below 1, that share of their passages, spread evenly.

    Passages rather than documents, so that one document of a gigabyte is sampled as fairly as a million of a kilobyte.
    """
    from groundup.tokens.documents import read_documents  # pyarrow, which nobody who reads or writes text needs

    passages = 0
    for _, texts in read_documents(source):
        if share >= 1.0:
            yield texts
            continue
        chosen = []
        for text in texts:
            for start in range(0, len(text), _PASSAGE):
                passages += 1
                if int(passages * share) > int((passages - 1) * share):
                    chosen.append(text[start : start + _PASSAGE])
        yield chosen


def _watched(batches: Iterator[list[str]], progress: Progress) -> Iterator[list[str]]:
    for texts in batches:
        yield texts
        progress.advance(sum(len(text.encode()) for text in texts))


def _control_token(token: str) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(token, special=True, normalized=False)


def _serialise(inner: tokenizers.Tokenizer) -> str:
    text: str = inner.to_str(pretty=True)
    return text + "\n"


def fingerprint_without_appended(folder: Path) -> str:
    """SHA-256 of what `tokenizer.json` was before pre-training appended control tokens to it.

    It tells whether two tokenizers give the same tokens for text. Raises UserError for a file that is no tokenizer.
    """
    path = folder / TOKENIZER_FILE
    try:
        content = json.loads(path.read_bytes())
        trained = [token for token in content["added_tokens"] if token["content"] not in HIDDEN_TEXT_TOKENS]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a whole tokenizer ({error}); copy it again or train it anew") from None
    if len(trained) == len(content["added_tokens"]):
        return hash_file(path)
    inner = tokenizers.Tokenizer.from_str(json.dumps(content | {"added_tokens": trained}))
    return hashlib.sha256(_serialise(inner).encode()).hexdigest()


def _transformers_config(control: Sequence[str]) -> dict[str, object]:
    """`tokenizer_config.json`, in the words that both transformers 4 and 5 understand."""
    mask = {"mask_token": MASK_TOKEN} if MASK_TOKEN in control else {}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|end_of_text|>",
        "pad_token": "<|pad|>",
        **mask,
        "additional_special_tokens": [token for token in control[3:] if token != MASK_TOKEN],
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }


def _summary(tokenizer: Tokenizer, corpus_bytes: int, share: float) -> dict[str, object]:
    texts = [tokenizer.decode([index]) for index in range(tokenizer.vocab_size)]
    return {
        "vocab_size": tokenizer.vocab_size,
        "control_tokens": len(CONTROL_TOKENS),
        "corpus_bytes": corpus_bytes,
        "sample_bytes": round(corpus_bytes * share),
        # By letters: the longest in bytes are all indentation.
        "longest_words": sorted(texts, key=lambda text: sum(map(str.isalpha, text)), reverse=True)[:20],
    }


def _bytes_of_tokens(inner: tokenizers.Tokenizer, control: Container[str]) -> list[bytes]:
    """The bytes behind each id; none for control tokens."""
    byte_of = {character: value for value, character in enumerate(byte_alphabet())}
    pieces = [b""] * inner.get_vocab_size()
    for token, index in inner.get_vocab().items():
        if token not in control:
            pieces[index] = bytes(byte_of[character] for character in token)
    return pieces
