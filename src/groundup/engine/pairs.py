"""What an encoder-decoder reads: sources, and how the texts begin that are written for them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from groundup.engine.prompts import Pair, Prompt, Reader, is_sound, listed_ids
from groundup.engine.source import Source
from groundup.errors import UserError
from groundup.formats.folder import GENERATION
from groundup.model.config import AudioConfig, EncoderDecoderConfig, ModelConfig
from groundup.tokens.text import TextTokenizer


class PairReader(Reader):
    """A reader for whom a prompt is a source, unless it is a pair.

    Raises UserError for a folder whose generation settings begin targets with what are no tokens.
    """

    def __init__(self, config: EncoderDecoderConfig, folder: Path | None, tokenizer: TextTokenizer | None) -> None:
        super().__init__(config.decoder, folder, tokenizer)
        self._encoder = config.encoder
        self._start = self._usual_start(config.start_id)

    def read(self, prompt: Prompt, where: str, room: int) -> tuple[list[int], Source]:
        """As for decoders; the ids are those of the target."""
        pair = prompt if isinstance(prompt, Pair) else Pair(prompt)
        if isinstance(pair.target, str):
            target = [*self._start, *self.tokenizer.encode(pair.target)]
        else:
            target = self._start if pair.target is None else listed_ids(pair.target, where)
        self._require_tokens(target, where)
        self._require_room(target, where, room)
        return target, self._source(pair.source, where)

    def ids(self, text: Prompt, where: str, room: int) -> list[int]:
        """The token ids of a source of text, with what stands around it, as in those that such models learn from."""
        if isinstance(self._encoder, AudioConfig) or isinstance(text, Pair) or is_sound(text):
            reads = "a log-mel spectrogram" if isinstance(self._encoder, AudioConfig) else "a text or token ids"
            raise ValueError(f"{where}: the encoder of this {self._config.family} model reads {reads}")
        ids = self.tokenizer.source(text) if isinstance(text, str) else listed_ids(text, where)
        self._require_tokens(ids, where)
        if self._config.learned_positions is not None:
            self._require_room(ids, where, room)
        return ids

    def _source(self, content: str | Sequence[int] | Tensor, where: str) -> Source:
        if not isinstance(self._encoder, AudioConfig) or not isinstance(content, Tensor):
            ids = self.ids(content, where, room=0)
            return Source(torch.tensor(ids), len(ids))
        bins, frames = self._encoder.mel_bins, 2 * self._encoder.positions
        if content.ndim != 2 or content.shape[0] != bins or not 1 <= content.shape[1] <= frames:
            raise ValueError(
                f"{where}: sound must come as ({bins} mel bins, at most {frames} frames), not {tuple(content.shape)}"
            )
        return Source(content, (content.shape[1] + 1) // 2)

    def _usual_start(self, start_id: int) -> list[int]:
        """The tokens that every target begins with: the first, and those that Whisper's settings force behind it.

        Where they leave a place open (the language), it is the model that goes on from there.
        """
        first, places = self._settings.get("decoder_start_token_id"), self._settings.get("forced_decoder_ids")
        start = [start_id if first is None else first]
        try:
            forced = dict(places or ())
        except (TypeError, ValueError):
            raise UserError(
                f"{self._folder}/{GENERATION}: `forced_decoder_ids` must be pairs, not {places!r}"
            ) from None
        while (token := forced.get(len(start))) is not None:
            start.append(token)
        vocab_size = self._config.vocab_size
        if not all(isinstance(token, int) and 0 <= token < vocab_size for token in start):
            raise UserError(
                f"{self._folder}/{GENERATION} begins texts with {start}, which are not all token ids below {vocab_size}"
            )
        return start


def reader_of(
    config: ModelConfig | EncoderDecoderConfig, folder: Path | None, tokenizer: TextTokenizer | None
) -> Reader:
    """Who reads prompts for a model of this kind."""
    if isinstance(config, EncoderDecoderConfig):
        return PairReader(config, folder, tokenizer)
    return Reader(config, folder, tokenizer)
