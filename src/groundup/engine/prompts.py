"""What a model reads: prompts as token ids, alone or as padded rows, and what its texts end at."""

from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import torch
from torch import Tensor

from groundup.engine.source import Source
from groundup.engine.text import StoppingText
from groundup.errors import UserError
from groundup.formats.folder import GENERATION, read_object
from groundup.formats.published import load_tokenizer
from groundup.model.config import ModelConfig
from groundup.tokens.text import TextTokenizer


@dataclass(frozen=True)
class Pair:
    """What an encoder-decoder is given where it is more than a source.

    source: a text, token ids (a list, an array, a tensor), or of sound a log-mel spectrogram (mel bins, frames).
    target: how the text begins that is written for it, or the text that is scored; a text goes behind the tokens with
        which targets begin, token ids are all there is. None: those tokens alone.
    """

    source: str | Sequence[int] | Tensor
    target: str | Sequence[int] | Tensor | None = None


# A text, or token ids as they are; of encoder-decoders the source, or a pair.
Prompt = str | Sequence[int] | Tensor | Pair


class Reader:
    """Reads prompts for a model.

    folder: that the model lies in, or None; tokenizer: to be used instead of the folder's, or None.
    """

    def __init__(self, config: ModelConfig, folder: Path | None, tokenizer: TextTokenizer | None) -> None:
        self._config, self._folder, self._given = config, folder, tokenizer

    @property
    def tokenizer(self) -> TextTokenizer:
        """Raises UserError, saying why, where there is none: token ids are then all that can be read."""
        if isinstance(self._words, UserError):
            raise self._words
        return self._words

    def read(self, prompt: Prompt, where: str, room: int) -> tuple[list[int], Source | None]:
        """The token ids of what goes on, and the source that it goes on for, where the model has an encoder.

        room: tokens that must fit behind them. Raises ValueError, naming `where` it stands, if they do not fit.
        """
        return self.ids(prompt, where, room), None

    def ids(self, text: Prompt, where: str, room: int) -> list[int]:
        """The token ids of a text by itself, with what texts begin with; raises as `read` does."""
        if isinstance(text, Pair) or is_sound(text):
            raise ValueError(
                f"{where}: a {self._config.family} model goes on from a text or token ids, without a source"
            )
        if isinstance(text, str):
            ids = self.tokenizer.prompt(text) if self._config.causal else self.tokenizer.whole(text)
        else:
            ids = listed_ids(text, where)
        self._require_tokens(ids, where)
        self._require_room(ids, where, room)
        return ids

    def _require_tokens(self, ids: Sequence[int], where: str) -> None:
        if not ids:
            raise ValueError(f"{where}: a prompt needs at least one token")
        self._require_known(ids, where)

    def _require_known(self, ids: Sequence[int], where: str) -> None:
        vocab_size = self._config.vocab_size
        if (strange := next((one for one in ids if not 0 <= one < vocab_size), None)) is not None:
            raise ValueError(f"{where}: {strange} is no token of this model, whose ids are 0 … {vocab_size - 1}")

    def _require_room(self, ids: Sequence[int], where: str, room: int) -> None:
        longest = self._config.max_positions
        if len(ids) + room > longest:
            raise ValueError(f"{where} has {len(ids)} tokens and leaves no room: the model holds {longest}")

    def text(self, stops: Sequence[str]) -> StoppingText | None:
        """What turns tokens into text; None where there is no tokenizer. Raises UserError if stop strings need one."""
        return StoppingText(self.tokenizer, stops) if stops or isinstance(self._words, TextTokenizer) else None

    def spell(self, ids: Sequence[int]) -> str:
        """What token ids say behind a prompt; nothing where there is no tokenizer."""
        return self._words.spell(ids) if isinstance(self._words, TextTokenizer) else ""

    def stops(self, given: Collection[int] | None) -> Collection[int]:
        """The tokens that end a text: those that are given or, without any, the usual ones.

        Raises ValueError for what is no token of the model.
        """
        if given is None:
            return self._usual_stops()
        ids = listed_ids(given, "`stop_ids`")
        self._require_known(ids, "`stop_ids`")
        return ids

    def _usual_stops(self) -> Collection[int]:
        """Those of the folder's generation settings or, without any, of the tokenizer.

        Raises UserError where the settings name what is no token of the model.
        """
        found = self._settings.get("eos_token_id")
        if found is not None:
            named = found if isinstance(found, list) else [found]
            if not all(type(one) is int and 0 <= one < self._config.vocab_size for one in named):
                raise UserError(
                    f"{self._folder}/{GENERATION}: `eos_token_id` must be token ids below {self._config.vocab_size}, "
                    f"not {found!r}; mend it, or give the engine `stop_ids`"
                )
            return named
        return self._words.end_ids if isinstance(self._words, TextTokenizer) else ()

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """How the folder wants its texts to be written; empty where there is nothing of the kind."""
        if self._folder is None or not (self._folder / GENERATION).is_file():
            return {}
        return read_object(self._folder / GENERATION)

    @cached_property
    def _words(self) -> TextTokenizer | UserError:
        if self._given is not None:
            return self._given
        if self._folder is None:
            return UserError("this engine has a model without a tokenizer; give it token ids, or a `tokenizer`")
        try:
            return load_tokenizer(self._folder)
        except UserError as error:
            return error


def listed_ids(given: Iterable[int], where: str) -> list[int]:
    """Token ids as integers of Python's own, whatever holds them, an array or a tensor say.

    Raises ValueError, naming `where` they stand, for anything else: it would fail in the midst of a step, and with it
    all texts that share the step.
    """
    if isinstance(given, Iterable) and not isinstance(given, bytes | bytearray | Mapping):
        try:
            return array("q", given.tolist() if isinstance(given, Tensor) else given).tolist()
        except (TypeError, OverflowError):
            pass
    raise ValueError(f"{where}: {shortened(given)} is no list of token ids")


def is_sound(content: object) -> bool:
    """Whether it is a tensor of other numbers than token ids are."""
    return isinstance(content, Tensor) and content.is_floating_point()


def left_padded(texts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids of texts as rows that end together, and an int32 mask of their tokens; both (texts, longest)."""
    longest = max(map(len, texts))
    # Any token will do as padding: the mask hides it.
    ids = [[0] * (longest - len(text)) + list(text) for text in texts]
    mask = [[0] * (longest - len(text)) + [1] * len(text) for text in texts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device, dtype=torch.int32)
