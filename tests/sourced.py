"""Tiny encoder-decoders of text and of sound, sources for them, and requests to a loop that is turned by hand."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial

import torch
from tiny import VOCABULARY, heat, random_ids
from torch import Tensor
from workloads import Request

from groundup.engine.loop import Loop
from groundup.engine.source import Source
from groundup.model.config import AudioConfig, EncoderDecoderConfig, ModelConfig, RelativePositions, StackConfig
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.specs import Attention, Experts, FeedForward, LayerSpec, Norm, Router

WIDTH, FRAMES, BINS, LIMIT = 32, 60, 5, 100
TEXTS = [random_ids(length, seed=length).tolist() for length in (9, 1, 40, 6)]
START = 3


def sound(frames: int, seed: int) -> Tensor:
    """A spectrogram, in float64."""
    return torch.randn(BINS, frames, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SOUNDS = [sound(frames, seed) for seed, frames in enumerate((24, 24, 59, 7))]


def sourced_config(kind: str, vocab_size: int = VOCABULARY) -> EncoderDecoderConfig:
    """kind: `text`, `sound`, or `experts` for those that take three tokens of a text each."""
    seeing = Attention(4, 2, 8, causal=False)
    network = FeedForward(48, "relu", gated=False)
    router = Router(3, chosen=1, normalised=False, capacity=3)
    layer = LayerSpec(seeing, Experts(network, router) if kind == "experts" else network, Norm())
    relative = RelativePositions(8, 20)
    stack = StackConfig(width=WIDTH, layers=(layer,) * 2, final_norm=Norm(), relative_positions=relative)
    hearing = AudioConfig(width=WIDTH, layers=(layer,) * 2, final_norm=Norm(), mel_bins=BINS, positions=FRAMES // 2)
    decoder = ModelConfig(
        family="t5",
        vocab_size=vocab_size,
        width=WIDTH,
        layers=(replace(layer, mixer=replace(seeing, causal=True), cross=seeing),) * 2,
        final_norm=Norm(),
        relative_positions=relative,
        tied_head=False,
        max_positions=LIMIT,
    )
    return EncoderDecoderConfig(
        family="t5", encoder=hearing if kind == "sound" else stack, decoder=decoder, start_id=START
    )


@cache
def sourced_model(kind: str, vocab_size: int = VOCABULARY, dtype: torch.dtype = torch.float64) -> EncoderDecoder:
    """In float64, rounding never decides between two tokens."""
    model = EncoderDecoder(sourced_config(kind, vocab_size))
    heat(model, seed=2)
    return model.to(dtype).eval()


def contents(kind: str) -> Sequence[list[int] | Tensor]:
    """Four sources of a model of this kind."""
    return SOUNDS if kind == "sound" else TEXTS


def as_input(content: Sequence[int] | Tensor) -> Tensor:
    """A source as the model takes it, a batch of one."""
    return content[None] if isinstance(content, Tensor) else torch.tensor([list(content)])


def source_of(content: Sequence[int] | Tensor) -> Source:
    if isinstance(content, Tensor):
        return Source(content, (content.shape[1] + 1) // 2)
    return Source(torch.tensor(content), len(content))


@torch.no_grad()
def target_logits(model: EncoderDecoder, content: Sequence[int] | Tensor, target: Sequence[int]) -> Tensor:
    """(tokens, vocab), by one call without a cache."""
    logits_tv: Tensor = model(as_input(content), torch.tensor([list(target)]))[0]
    return logits_tv


def greedy_target(
    model: EncoderDecoder, content: Sequence[int] | Tensor, count: int, begun: Sequence[int] = (START,)
) -> list[int]:
    """The likeliest token each time, found from all before it, without a cache."""
    ids = list(begun)
    for _ in range(count):
        ids.append(int(target_logits(model, content, ids)[-1].argmax()))
    return ids[len(begun) :]


def begin(request: Request, loop: Loop, number: int, kind: str) -> None:
    """Begin a request for its source; requests for equal sources have one each."""
    request.begin(loop, number, source_of(contents(kind)[request.source]))


def check_alone(model: EncoderDecoder, kind: str, *requests: Request) -> None:
    """All that was told, against calls of the model without a cache."""
    for request in requests:
        request.check(partial(target_logits, model, contents(kind)[request.source]))
