"""Text ⇄ token ids, whoever made the vocabulary, without a way from text to a control token; and text that streams.

Every token stands for some bytes of text, so that text can be given out token by token, half a character at a time.
"""

import codecs
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers

from groundup.errors import UserError

TOKENIZER_FILE = "tokenizer.json"

# Half a pair, which no UTF-8 text can hold.
_SURROGATE = re.compile("[\ud800-\udfff]")


class TextTokenizer:
    """What every tokenizer can do: groundup's own (`tokens/tokenizer.py`) and those of published models (`formats/`).

    vocab_size: number of tokens; ids are 0 … vocab_size - 1.
    control: the id of each control token, by its text.
    beginning, ending: what stands before a text, and behind one that an encoder reads.
    end_ids: the tokens that end a text that a model writes, of which the first closes documents; maybe none.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        pieces: Sequence[bytes],
        control: Mapping[str, int],
        beginning: Sequence[int] = (),
        ending: Sequence[int] = (),
        end_ids: Sequence[int] = (),
        behind: tokenizers.Tokenizer | None = None,
    ) -> None:
        """pieces: the bytes that each token stands for, none for control tokens. behind: for `encode_behind`."""
        self._inner, self._behind = inner, behind or inner
        # Text that spells a control token is encoded as the ordinary characters it consists of.
        self._inner.encode_special_tokens = self._behind.encode_special_tokens = True
        self._bytes = pieces
        self.vocab_size = len(pieces)
        self.control = dict(control)
        self.beginning, self.ending, self.end_ids = tuple(beginning), tuple(ending), tuple(end_ids)
        self._control_names = {index: token for token, index in self.control.items()}

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`: nothing is added, and no control token appears whatever the text says.

        Raises ValueError for half a surrogate pair, which no UTF-8 text can hold.
        """
        return _encoded(self._inner, text)

    def encode_behind(self, text: str) -> list[int]:
        """As `encode`, of a text behind another: without the space that many tokenizers put before every text."""
        return _encoded(self._behind, text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode`, for many texts on all cores."""
        return [encoding.ids for encoding in self._inner.encode_batch_fast(list(texts), add_special_tokens=False)]

    def prompt(self, text: str) -> list[int]:
        """The tokens from which a model goes on from `text`."""
        return [*self.beginning, *self.encode(text)]

    def whole(self, text: str) -> list[int]:
        """The tokens of a text that is read to its end."""
        return [*self.prompt(text), *self.ending]

    def source(self, text: str) -> list[int]:
        """The same for an encoder whose decoder writes another text."""
        return self.whole(text)

    def spell(self, ids: Sequence[int]) -> str:
        """What token ids say behind another text; control tokens are left out.

        Bytes that are not UTF-8 become U+FFFD; ids beyond the vocabulary spell nothing.
        Raises ValueError for an id below 0.
        """
        return b"".join(map(self.piece, ids)).decode("utf-8", errors="replace")

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids that begin a text; else as `spell`."""
        return self.spell(ids)

    def piece(self, index: int) -> bytes:
        """The bytes of text that one token stands for, none for a control token. Raises ValueError as `decode` does.

        None for an id beyond the vocabulary either: many a model's table has more rows than its tokenizer has tokens,
        and one that was hardly trained may choose any of them.
        """
        if index < 0:
            raise ValueError(f"a token id is at least 0, not {index}")
        return self._bytes[index] if index < self.vocab_size else b""

    def control_name(self, index: int) -> str | None:
        """`<|user|>` and the like for the id of a control token, None for any other."""
        return self._control_names.get(index)


class TextStream:
    """Text from token ids that arrive one by one: an incomplete character is held back until its last byte is there."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, index: int) -> str:
        """The text that token `index` completes, sometimes none; control tokens are left out."""
        return self._decoder.decode(self._tokenizer.piece(index))

    def finish(self) -> str:
        """What was held back at the end: U+FFFD for a character that was never completed, else nothing."""
        return self._decoder.decode(b"", final=True)

    def copy(self) -> "TextStream":
        """Another one that goes on from here."""
        copied = TextStream(self._tokenizer)
        copied._decoder.setstate(self._decoder.getstate())
        return copied


def _encoded(inner: tokenizers.Tokenizer, text: str) -> list[int]:
    try:
        ids: list[int] = inner.encode(text, add_special_tokens=False).ids
    except TypeError:
        if (broken := _SURROGATE.search(text)) is None:
            raise
        raise ValueError(f"text is not valid Unicode at character {broken.start()}; send UTF-8 text") from None
    return ids


def read_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """What `tokenizer.json` of a folder holds. Raises UserError where it is missing or unreadable."""
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise UserError(f"{path}: no such file; groundup and `save_pretrained` of transformers write one")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{path}: not a whole tokenizer ({error}); copy it again or train it anew") from error


def byte_alphabet() -> list[str]:
    """The printable character by which byte-level BPE writes each of the 256 bytes (GPT-2's `bytes_to_unicode`)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(value if value in printable else next(others)) for value in range(256)]
