"""Texts that an encoder-decoder writes for sources, many together: the encoder's work is done once.

Cached equals uncached, a batch equals its sources one by one, padding changes nothing (tests/engine/). Decoders go
through `engine.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from groundup.engine.cache import KeyValueCache
from groundup.engine.choose import make_chooser
from groundup.engine.prompts import left_padded
from groundup.engine.sampling import Sampling
from groundup.model.context import Memory
from groundup.model.encoder_decoder import EncoderDecoder

# What an encoder reads: token ids of texts or, of sound, log-mel spectrograms (batch, mel bins, frames).
Sources = Sequence[Sequence[int]] | Tensor


class Generator:
    """Continues targets, token sequences, each for a source of its own.

    stop_ids: tokens that end a target; they are not part of the result.
    """

    def __init__(self, model: EncoderDecoder, stop_ids: Sequence[int]) -> None:
        self.model = model
        self.stop_ids = frozenset(stop_ids)

    @property
    def max_positions(self) -> int:
        """Tokens of a target that the model is meant for; generation ends there."""
        return self.model.decoder.config.max_positions

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, sources: Sources) -> list[list[int]]:
        """The tokens that follow each prompt, the beginning of a target, computed together.

        Raises ValueError for an empty prompt, one that leaves no room for an answer, sources that are not one for
        each, and settings that need more than one answer to a prompt or the text of one.
        """
        answers: list[list[int]] = [[] for _ in prompts]
        for tokens in self._steps(prompts, sampling, sources) if prompts else ():
            for answer, token in zip(answers, tokens, strict=True):
                if token is not None:
                    answer.append(token)
        return answers

    @torch.no_grad()
    def _steps(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, sources: Sources
    ) -> Iterator[list[int | None]]:
        """One list per step: the new token of each target, or None where it has ended."""
        if max(sampling.n, sampling.best_of or 1, sampling.beams) > 1 or sampling.stop:
            raise ValueError("`n`, `best_of`, `beams` and `stop` are not for this: it goes on once, token by token")
        longest = max(len(prompt) for prompt in prompts)
        if min(len(prompt) for prompt in prompts) == 0:
            raise ValueError("a prompt needs at least one token")
        if longest >= self.max_positions:
            raise ValueError(f"a prompt of {longest} tokens leaves no room: the model holds {self.max_positions}")
        memory = self._read(sources, len(prompts))
        input_ids, mask = left_padded(prompts, self.model.device)
        sampling = replace(sampling, stop_token_ids=tuple(self.stop_ids.union(sampling.stop_token_ids)))
        choosers = [make_chooser(sampling, prompt) for prompt in prompts]
        decoder = self.model.decoder
        cache = KeyValueCache(decoder)
        limits = [min(sampling.max_tokens, self.max_positions - len(prompt)) for prompt in prompts]
        alive = [True] * len(prompts)
        for step in range(max(limits)):
            logits_bv = decoder(input_ids, mask, cache, memory=memory)[:, -1].cpu()
            chosen = [chooser.choose(row).token for row, chooser in zip(logits_bv, choosers, strict=True)]
            alive = [
                on and step < limit and not chooser.has_ended
                for on, limit, chooser in zip(alive, limits, choosers, strict=True)
            ]
            if not any(alive):
                return
            yield [token if on else None for on, token in zip(alive, chosen, strict=True)]
            input_ids = torch.tensor(chosen, device=mask.device)[:, None]
            # What has ended goes on as padding, which takes no more positions than the model has.
            mask = torch.cat((mask, mask.new_tensor(alive)[:, None]), dim=1)

    def _read(self, sources: Sources, prompts: int) -> Memory:
        """What the encoder makes of the sources. Raises ValueError unless there is one for each prompt."""
        if len(sources) != prompts:
            raise ValueError(f"an encoder-decoder needs a source for each of the {prompts} prompts")
        if isinstance(sources, Tensor):
            return self.model.read(sources.to(self.model.device))
        if min(map(len, sources)) == 0:
            raise ValueError("a source needs at least one token")
        return self.model.read(*left_padded(sources, self.model.device))
