"""Generation with a key-value cache: one prompt as a stream, or many together, left-padded.

Cached equals uncached, a batch equals its prompts one by one, padding changes nothing (tests/engine/).
"""

from collections.abc import Iterator, Sequence

import torch

from groundup.engine.cache import KeyValueCache
from groundup.engine.sampling import Sampling, choose
from groundup.model.language_model import LanguageModel


class Generator:
    """Continues token sequences with a model.

    stop_ids: tokens that end a sequence; they are not part of the result.
    """

    def __init__(self, model: LanguageModel, stop_ids: Sequence[int]) -> None:
        self.model = model
        self.stop_ids = frozenset(stop_ids)

    @property
    def max_positions(self) -> int:
        """Tokens of prompt and answer together that the model is meant for; generation ends there."""
        return self.model.config.max_positions

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
        """The tokens that follow `prompt`, one by one as they are chosen.

        Raises ValueError for an empty prompt or one that leaves no room for an answer.
        """
        for tokens in self._steps([prompt], sampling):
            if tokens[0] is not None:
                yield tokens[0]

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
        """The tokens that follow each prompt, computed together."""
        answers: list[list[int]] = [[] for _ in prompts]
        for tokens in self._steps(prompts, sampling) if prompts else ():
            for answer, token in zip(answers, tokens, strict=True):
                if token is not None:
                    answer.append(token)
        return answers

    @torch.no_grad()
    def _steps(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[list[int | None]]:
        """One list per step: the new token of each sequence, or None where it has ended."""
        longest = max(len(prompt) for prompt in prompts)
        if min(len(prompt) for prompt in prompts) == 0:
            raise ValueError("a prompt needs at least one token")
        if longest >= self.max_positions:
            raise ValueError(f"a prompt of {longest} tokens leaves no room: the model holds {self.max_positions}")
        device = self.model.device
        # Any token will do as padding: the mask hides it.
        input_ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        mask = torch.tensor(
            [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device, dtype=torch.int32
        )
        generators = [torch.Generator().manual_seed(sampling.seed) for _ in prompts]
        cache = KeyValueCache(self.model)
        limits = [min(sampling.max_tokens, self.max_positions - len(prompt)) for prompt in prompts]
        alive = [True] * len(prompts)
        for step in range(max(limits)):
            logits_bv = self.model(input_ids, attention_mask=mask, cache=cache)[:, -1].cpu()
            chosen = [choose(row, sampling, generator) for row, generator in zip(logits_bv, generators, strict=True)]
            alive = [
                on and step < limit and token not in self.stop_ids
                for on, limit, token in zip(alive, limits, chosen, strict=True)
            ]
            if not any(alive):
                return
            yield [token if on else None for on, token in zip(alive, chosen, strict=True)]
            input_ids = torch.tensor(chosen, device=device)[:, None]
            # What has ended goes on as padding, which takes no more positions than the model has.
            mask = torch.cat((mask, mask.new_tensor(alive)[:, None]), dim=1)
