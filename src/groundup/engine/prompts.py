"""What a model reads: prompts as token ids, alone or as padded rows, and what its texts end at."""

from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from groundup.engine.text import StoppingText
from groundup.errors import UserError
from groundup.formats.folder import GENERATION, read_object
from groundup.model.config import ModelConfig
from groundup.tokens.tokenizer import Tokenizer

# A text, or token ids as they are.
Prompt = str | Sequence[int]


class Reader:
    """Reads prompts for a model.

    folder: that the model lies in, or None; tokenizer: to be used instead of the folder's, or None.
    """

    def __init__(self, config: ModelConfig, folder: Path | None, tokenizer: Tokenizer | None) -> None:
        self._config, self._folder, self._given = config, folder, tokenizer

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises UserError, saying why, where there is none: token ids are then all that can be read."""
        if isinstance(self._words, UserError):
            raise self._words
        return self._words

    def ids(self, prompt: Prompt, where: str, room: int) -> list[int]:
        """A prompt's token ids; those of a text begin with `<|begin_of_text|>`.

        room: tokens that must fit behind it. Raises ValueError, naming `where` it stands, if it does not fit.
        """
        ids = [self.tokenizer.bos_id, *self.tokenizer.encode(prompt)] if isinstance(prompt, str) else list(prompt)
        vocab_size, longest = self._config.vocab_size, self._config.max_positions
        if not ids:
            raise ValueError(f"{where}: a prompt needs at least one token")
        if (strange := next((one for one in ids if not 0 <= one < vocab_size), None)) is not None:
            raise ValueError(f"{where}: {strange} is no token of this model, whose ids are 0 … {vocab_size - 1}")
        if len(ids) + room > longest:
            raise ValueError(f"{where} has {len(ids)} tokens and leaves no room: the model holds {longest}")
        return ids

    def text(self, stops: Sequence[str]) -> StoppingText | None:
        """What turns tokens into text; None where there is no tokenizer. Raises UserError if stop strings need one."""
        return StoppingText(self.tokenizer, stops) if stops or isinstance(self._words, Tokenizer) else None

    def spell(self, ids: Sequence[int]) -> str:
        """The text of token ids; none where there is no tokenizer."""
        return self._words.decode(ids) if isinstance(self._words, Tokenizer) else ""

    def usual_stops(self) -> Collection[int]:
        """The tokens that end a text by the folder's generation settings or, without any, by the tokenizer."""
        if self._folder is not None and (self._folder / GENERATION).is_file():
            found = read_object(self._folder / GENERATION).get("eos_token_id")
            if found is not None:
                return [found] if isinstance(found, int) else found
        return (self._words.eos_id, self._words.end_id) if isinstance(self._words, Tokenizer) else ()

    @cached_property
    def _words(self) -> Tokenizer | UserError:
        if self._given is not None:
            return self._given
        if self._folder is None:
            return UserError("this engine has a model without a tokenizer; give it token ids, or a `tokenizer`")
        try:
            return Tokenizer.load(self._folder)
        except UserError as error:
            return error


def left_padded(texts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids of texts as rows that end together, and an int32 mask of their tokens; both (texts, longest)."""
    longest = max(map(len, texts))
    # Any token will do as padding: the mask hides it.
    ids = [[0] * (longest - len(text)) + list(text) for text in texts]
    mask = [[0] * (longest - len(text)) + [1] * len(text) for text in texts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device, dtype=torch.int32)
