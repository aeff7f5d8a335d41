"""A scheduled step, computed by the model.

Chunks of equal length go through the model together, the new tokens of all running texts among them; others alone. So
do texts of very different lengths, as what is gathered for a call is padded to the longest.

Shape suffixes: b sequences, t new tokens, d model width, v vocabulary, n tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from groundup.engine.choose import Choice, choice_of
from groundup.engine.encoding import Encoding
from groundup.engine.paged import PagedStore, StepCache, lay_out
from groundup.engine.sequence import Chunk, Step
from groundup.engine.sequence import Sequence as Text
from groundup.engine.sight import windowed_layers
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.language_model import LanguageModel
from groundup.model.lora import Adapter, Adapters
from groundup.model.parts import widen
from groundup.model.rotary import DynamicScaling, LongRopeScaling
from groundup.model.specs import Attention, Experts, LatentAttention

# Tokens per pass through the head where the logits of whole prompts are wanted.
HEAD_TOKENS = 256
# Texts up to this length go together, however much shorter others are; from there on at most half is padding.
ALIKE_TOKENS = 64


class StepRunner(ABC):
    """A decoder, the adapters it can be run with, and the place where its sequences lie.

    peaks: of the last logits, where the kernels know them; see `kernels.choices.Choices`.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.adapters = Adapters(model)
        self.peaks: Tensor | None = None

    @abstractmethod
    def run(self, step: Step) -> Tensor:
        """Compute a step; returns the final activations (m, d) of all tokens, one chunk behind the other.

        They are valid until logits are asked for, or another step is computed.
        """

    def adapted(self, adapters: Sequence[Adapter | None]) -> AbstractContextManager[object]:
        """Within it, each row of a call of the model has its adapter, or none."""
        return self.adapters.applied(adapters, self.model.device)

    @torch.no_grad()
    def logits(self, hidden_nd: Tensor, adapters: Sequence[Adapter | None]) -> Tensor:
        """(n, vocab) on the CPU, in at least float32, valid until others are asked for.

        hidden_nd: of n tokens, from `run`. adapters: of each of them.
        """
        return self._head_logits(hidden_nd, adapters).cpu()

    @torch.no_grad()
    def score(self, hidden_nd: Tensor, next_ids: list[int], adapter: Adapter | None, top: int) -> list[Choice]:
        """The tokens that came next in a text, with so many of the likeliest; computed as the trainer's loss is."""
        found: list[Choice] = []
        for start in range(0, len(next_ids), HEAD_TOKENS):
            ids = next_ids[start : start + HEAD_TOKENS]
            logits_nv = self._head_logits(hidden_nd[start : start + len(ids)], [adapter] * len(ids))
            found += _choices_of(logits_nv, ids, top)
        return found

    def _head_logits(self, hidden_nd: Tensor, adapters: Sequence[Adapter | None]) -> Tensor:
        """(n, vocab) where the model lies, otherwise like `logits`."""
        with self.adapters.applied(adapters, hidden_nd.device):
            return widen(self.model.logits(hidden_nd[None])[0])


def _choices_of(logits_nv: Tensor, ids: list[int], top: int) -> list[Choice]:
    """Tokens that were chosen from these logits, as choices."""
    normaliser_n = logits_nv.logsumexp(-1)
    if top:
        rows = zip(ids, logits_nv.cpu().numpy(), normaliser_n.tolist(), strict=True)
        return [choice_of(token, logits_v, normaliser, top) for token, logits_v, normaliser in rows]
    chosen_n = logits_nv.gather(1, torch.tensor(ids, device=logits_nv.device)[:, None])[:, 0]
    return [Choice(token, logprob, []) for token, logprob in zip(ids, (chosen_n - normaliser_n).tolist(), strict=True)]


class Runner(StepRunner):
    """Through the model itself, and a store of tensors.

    model: a decoder, or an encoder-decoder, all of whose sequences then have a source.
    blocks: of the store, on the model's device. host_blocks: further ones in the host's memory.
    window_blocks: for layers that see a window, if these have their own.
    """

    def __init__(
        self,
        model: LanguageModel | EncoderDecoder,
        blocks: int,
        host_blocks: int = 0,
        window_blocks: int | None = None,
    ) -> None:
        decoder = decoder_of(model)
        super().__init__(decoder)
        windowed = [] if window_blocks is None else windowed_layers(decoder)
        self._store = PagedStore(len(decoder.layers), blocks, host_blocks, windowed, window_blocks or 0)
        self._encoding = Encoding(model, self._store) if isinstance(model, EncoderDecoder) else None
        self._remembers = is_recurrent(decoder)
        self._alone = depends_on_the_longest(decoder)

    @torch.no_grad()
    def run(self, step: Step) -> Tensor:
        self._store.copy(step.copies, step.window_copies)
        if self._encoding is not None:
            self._encoding.read(step.chunks)
        found = dict(pair for chunks in self._together(step.chunks) for pair in self._call(chunks))
        return torch.cat([found[chunk.sequence] for chunk in step.chunks])

    def _together(self, chunks: list[Chunk]) -> list[list[Chunk]]:
        """Chunks that go through the model in one call."""
        if self._alone:
            return [[chunk] for chunk in chunks]
        calls: list[list[Chunk]] = []
        for chunk in sorted(chunks, key=lambda chunk: (chunk.length, chunk.seen), reverse=True):
            longest = calls[-1][0] if calls else None
            if longest is None or longest.length != chunk.length or _is_far_longer(longest, chunk):
                calls.append([])
            calls[-1].append(chunk)
        return calls

    def _call(self, chunks: list[Chunk]) -> Iterator[tuple[Text, Tensor]]:
        """The final activations (t, d) of each sequence's new tokens."""
        device = self.model.device
        layout = lay_out(chunks, self._store, device)
        sources = None if self._encoding is None else self._encoding.layout(chunks)
        states = [chunk.sequence.state for chunk in chunks]
        cache = StepCache(self._store, layout, states, None if sources is None else sources.slots_bs)
        memory = None if sources is None else sources.memory
        ids = [chunk.sequence.tokens[chunk.start : chunk.start + chunk.length] for chunk in chunks]
        input_ids = torch.tensor(ids, device=device)
        with self.adapted([chunk.sequence.adapter for chunk in chunks]):
            hidden_btd = self.model.hidden(input_ids, layout.positions_bt, layout.segments_bs, cache, memory=memory)
        for row, chunk in enumerate(chunks):
            if self._remembers:
                chunk.sequence.state = cache.remembered(row)
            yield chunk.sequence, hidden_btd[row]


def _is_far_longer(one: Chunk, other: Chunk) -> bool:
    return one.seen > ALIKE_TOKENS and one.seen > 2 * other.seen


def decoder_of(model: LanguageModel | EncoderDecoder) -> LanguageModel:
    """The part of a model that writes."""
    return model.decoder if isinstance(model, EncoderDecoder) else model


def is_recurrent(model: LanguageModel) -> bool:
    """Whether some layer remembers anything beside keys and values."""
    for layer in model.config.layers:
        if not isinstance(layer.mixer, Attention | LatentAttention):
            return True
        if isinstance(layer.feed_forward, Experts) and layer.feed_forward.router.capacity is not None:
            return True
    return False


def depends_on_the_longest(model: LanguageModel) -> bool:
    """Whether rotary frequencies are chosen by the last position of a call: by other sequences in it, and by chunks."""
    mixers = [layer.mixer for layer in model.config.layers]
    return any(
        isinstance(mixer, Attention | LatentAttention)
        and mixer.rope is not None
        and isinstance(mixer.rope.scaling, DynamicScaling | LongRopeScaling)
        for mixer in mixers
    )
