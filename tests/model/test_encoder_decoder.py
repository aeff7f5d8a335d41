"""Encoder-decoders against definitions: what is refused, what it costs, where it starts, and texts that share a row."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import VOCABULARY, heat, random_ids
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from groundup.model.audio import sinusoids
from groundup.model.config import (
    AudioConfig,
    EncoderDecoderConfig,
    LearnedPositions,
    ModelConfig,
    RelativePositions,
    StackConfig,
)
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.initialise import initialise
from groundup.model.rotary import Rope
from groundup.model.specs import Attention, Experts, FeedForward, LayerSpec, Norm, Router

WIDTH, FRAMES, BINS = 32, 30, 6
NORM = Norm("rms", 1e-6)
SEEING = Attention(4, 4, 12, scale=1.0, causal=False)
LAYER = LayerSpec(SEEING, FeedForward(48, "gelu_tanh", gated=True), NORM)
SPARSE = replace(LAYER, feed_forward=Experts(FeedForward(24, "relu", gated=False), Router(3, 1, capacity=4)))
RELATIVE = RelativePositions(8, 20)
DECODER_LAYER = replace(LAYER, mixer=replace(SEEING, causal=True), cross=SEEING)

T5 = EncoderDecoderConfig(
    family="t5",
    encoder=StackConfig(width=WIDTH, layers=(LAYER,) * 2, final_norm=NORM, relative_positions=RELATIVE),
    decoder=ModelConfig(
        family="t5",
        vocab_size=VOCABULARY,
        width=WIDTH,
        layers=(DECODER_LAYER,) * 3,
        final_norm=NORM,
        relative_positions=RELATIVE,
        tied_head=True,
        max_positions=100,
        logit_scale=WIDTH**-0.5,
    ),
)
SWITCH = replace(
    T5,
    encoder=replace(T5.encoder, layers=(LAYER, SPARSE)),
    decoder=replace(T5.decoder, layers=(replace(SPARSE, mixer=replace(SEEING, causal=True), cross=SEEING),) * 2),
)
# Encoder and decoder with positions of their own: rotary ones on one side, learned ones on the other.
ROTARY = replace(
    T5,
    encoder=replace(
        T5.encoder, relative_positions=None, layers=(replace(LAYER, mixer=replace(SEEING, rope=Rope())),) * 2
    ),
    decoder=replace(T5.decoder, relative_positions=None, learned_positions=LearnedPositions(100)),
)
WHISPER = replace(
    T5,
    encoder=AudioConfig(width=WIDTH, layers=(LAYER,) * 2, final_norm=NORM, mel_bins=BINS, positions=FRAMES // 2),
    decoder=replace(T5.decoder, relative_positions=None, learned_positions=LearnedPositions(100), logit_scale=None),
)
TEXT = {"T5": T5, "Switch": SWITCH, "rotary": ROTARY}
ALL = pytest.mark.parametrize("config", [*TEXT.values(), WHISPER], ids=[*TEXT, "Whisper"])
OF_TEXT = pytest.mark.parametrize("config", TEXT.values(), ids=TEXT)


def _hot(config: EncoderDecoderConfig) -> EncoderDecoder:
    model = EncoderDecoder(config)
    heat(model, seed=0)
    return model.double().eval()


def _source(config: EncoderDecoderConfig, batch: int, time: int = 20) -> Tensor:
    if isinstance(config.encoder, AudioConfig):
        return torch.randn(batch, BINS, FRAMES, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    return random_ids(batch, time, seed=4)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"encoder": replace(T5.encoder, layers=(replace(LAYER, mixer=replace(SEEING, causal=True)),))}, "see all"),
        ({"encoder": replace(T5.encoder, width=16)}, "equally wide, not 16 and 32"),
        ({"encoder": replace(T5.encoder, layers=(replace(LAYER, cross=SEEING),))}, "no other sequence"),
        ({"encoder": replace(T5.encoder, layers=(replace(LAYER, mixer=replace(SEEING, window=4)),))}, "window"),
        (
            {
                "encoder": ModelConfig(
                    family="bert",
                    vocab_size=VOCABULARY + 1,
                    width=WIDTH,
                    layers=(LAYER,),
                    final_norm=None,
                    tied_head=True,
                    max_positions=8,
                )
            },
            "no vocabulary of its own",
        ),
        ({"decoder": replace(T5.decoder, layers=(LAYER,))}, "look back alone"),
        ({"decoder": replace(T5.decoder, layers=(replace(DECODER_LAYER, cross=None),))}, "attend to the encoder"),
        (
            {"decoder": replace(T5.decoder, layers=(replace(DECODER_LAYER, mixer=Attention(4, 4, 8, window=4)),))},
            "window",
        ),
        ({"start_id": VOCABULARY}, r"`start_id` \(64\) is not a token of a vocabulary of 64"),
    ],
)
def test_stacks_that_do_not_belong_together_are_refused(change: dict[str, Any], named: str):
    with pytest.raises(ValueError, match=named):
        replace(T5, **change)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: replace(SEEING, rope=Rope(), head_dim=15), "`head_dim` must be even"),
        (lambda: replace(LAYER, cross=replace(SEEING, rope=Rope())), "no order, window or rotation"),
        (lambda: replace(LAYER, cross=SEEING, placement="parallel"), "where cross-attention stands"),
        (lambda: RelativePositions(6, 20), "multiple of 4"),
        (lambda: RelativePositions(32, 16), "more than 16"),
        (lambda: replace(T5.encoder, layers=(LAYER, replace(LAYER, mixer=Attention(2, 2, 12)))), "equally many heads"),
        (lambda: replace(WHISPER.encoder, mel_bins=0), "`mel_bins` must be at least 1"),
        (lambda: Router(4, 2, capacity=3), "one expert per token"),
        (lambda: Router(4, 1, capacity=0), "at least 1"),
    ],
)
def test_parts_that_cannot_be_are_refused(build: Any, named: str):
    with pytest.raises(ValueError, match=named):
        build()


@ALL
def test_flops_are_those_that_pytorch_counts(config: EncoderDecoderConfig):
    model, source, target = _hot(config), _source(config, 2), random_ids(2, 9)
    sound = isinstance(config.encoder, AudioConfig)
    if sound:
        source.requires_grad_()  # or the first convolution would have no gradient for its input, as others have
    with FlopCounterMode(display=False) as counter:
        model(source, target).sum().backward()
    assert config.training_flops(FRAMES // 2 if sound else 20, 9) == counter.get_total_flops() / 2


@ALL
def test_flops_of_a_token_are_those_of_a_pair_as_long(config: EncoderDecoderConfig):
    assert config.training_flops_per_token(48) * 48 == config.training_flops(48, 48)


@ALL
def test_a_fresh_model_knows_nothing_and_is_the_same_for_one_seed(config: EncoderDecoderConfig):
    def fresh(seed: int) -> EncoderDecoder:
        model = EncoderDecoder(config)
        initialise(model, seed)
        return model

    ids = random_ids(8, 33, seed=3)
    logits = fresh(0)(_source(config, 8), ids[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(VOCABULARY), rel=0.05)
    weights, again, other = (dict(fresh(seed).named_parameters()) for seed in (0, 0, 1))
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert not all(torch.equal(weights[name], other[name]) for name in weights)


def test_fresh_scores_are_as_large_as_with_the_usual_scale():
    """Without the scale T5's first scores would be too large by the root of the head's size."""

    def score_size(scale: float | None) -> float:
        attention = replace(SEEING, heads=8, kv_heads=8, head_dim=64, scale=scale)
        stack = replace(T5.encoder, width=512, layers=(replace(LAYER, mixer=attention),))
        config = replace(T5, encoder=stack, decoder=replace(T5.decoder, width=512))
        model = EncoderDecoder(config)
        initialise(model, 0)
        mixer: Any = model.encoder.layers[0].mixer
        x_nd = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
        q_nhk, k_nhk = (part(x_nd).view(64, 8, 64) for part in (mixer.query, mixer.key))
        return float(torch.einsum("nhk,mhk->nmh", q_nhk, k_nhk).detach().std() * (scale or 64**-0.5))

    assert score_size(1.0) == pytest.approx(score_size(None), rel=1e-4)
    assert score_size(None) == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("width", [32, 48])
def test_sinusoids_are_those_of_the_reference(width: int):
    from transformers.models.whisper.modeling_whisper import sinusoids as reference

    torch.testing.assert_close(sinusoids(40, width).float(), reference(40, width), rtol=0, atol=1e-5)
    model = EncoderDecoder(WHISPER)
    initialise(model, 0)
    table: Any = model.encoder.positions.weight
    assert torch.equal(table, sinusoids(FRAMES // 2, WIDTH).float())


@OF_TEXT
def test_pairs_that_share_a_row_do_not_see_each_other(config: EncoderDecoderConfig):
    """Two sources and two targets in one row each, told apart by segments, are the two pairs alone."""
    model = _hot(config)
    sources = [random_ids(1, time, seed=time) for time in (7, 11)]
    targets = [random_ids(1, time, seed=time) for time in (9, 5)]
    expected = torch.cat([model(*pair) for pair in zip(sources, targets, strict=True)], dim=1)

    def packed(texts: list[Tensor], padding: int) -> tuple[Tensor, Tensor, Tensor]:
        lengths = [text.shape[1] for text in texts]
        positions = torch.cat([*map(torch.arange, lengths), torch.zeros(padding, dtype=torch.long)])[None]
        segments = [torch.full((length,), index) for index, length in enumerate(lengths)]
        return (
            torch.cat([*texts, torch.zeros(1, padding, dtype=torch.long)], dim=1),
            positions,
            torch.cat([*segments, torch.full((padding,), -1)])[None].int(),
        )

    ids, positions, segments = packed(targets, 3)
    memory = model.encode(*packed(sources, 2))
    logits = model.decoder.logits(model.decoder.hidden(ids, positions, segments, memory=memory))
    torch.testing.assert_close(logits[:, :-3], expected, rtol=1e-11, atol=1e-11)


@ALL
def test_bfloat16_compute_reaches_both_stacks(config: EncoderDecoderConfig):
    model = _hot(config).float()
    with torch.no_grad():  # unscaled scores of hot weights are so large that rounding decides who is seen
        for matrix in (parameter for parameter in model.parameters() if parameter.ndim > 1):
            matrix.mul_(0.5)
    source, target = _source(config, 2), random_ids(2, 12)
    expected = model(source, target)
    model.compute_dtype = torch.bfloat16
    assert model.read(source).hidden_bsd.dtype == torch.bfloat16
    logits = model(source, target)
    assert logits.dtype == torch.bfloat16
    # A rounded score sends a token of Switch to another expert now and then.
    distance = (logits - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert 0 < distance.median() < 0.1
    logits.square().mean().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.grad.dtype for parameter in trained if parameter.grad is not None} == {torch.float32}
