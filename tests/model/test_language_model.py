"""The decoder as a whole: who may influence whom, where positions start, what it costs."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny import TYPICAL, VOCABULARY, hot_decoder, random_ids, tiny_config
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from groundup.model.initialise import initialise
from groundup.model.language_model import LanguageModel, softcap
from groundup.model.presets import build_config
from groundup.model.specs import Attention

TYPICAL_PRESETS = pytest.mark.parametrize("preset", TYPICAL)
LENGTHS = (5, 1, 9, 2, 7)


def _documents() -> list[Tensor]:
    return [random_ids(1, length, seed=length) for length in LENGTHS]


def _packed(documents: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Input ids, positions and segments of one row that holds all the documents."""
    positions = torch.cat([torch.arange(document.shape[1]) for document in documents])[None]
    segments = torch.repeat_interleave(torch.arange(len(documents)), torch.tensor(LENGTHS))[None].to(torch.int32)
    return torch.cat(documents, dim=1), positions, segments


def _loss(logits_btv: Tensor, input_ids: Tensor) -> Tensor:
    """Any smooth function of all the logits that is a sum over positions."""
    return F.cross_entropy(logits_btv.flatten(0, 1), (input_ids.flatten() * 7 + 3) % VOCABULARY, reduction="sum")


@TYPICAL_PRESETS
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_packed_documents_give_what_each_gives_alone(preset: str, kv_heads: int):
    model = hot_decoder(tiny_config(preset, kv_heads))
    documents = _documents()
    input_ids, positions, segments = _packed(documents)

    packed_btv = model.logits(model.hidden(input_ids, positions, segments))
    _loss(packed_btv, input_ids).backward()
    packed_gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)

    for alone_btv, part_btv in zip(map(model, documents), packed_btv.split(LENGTHS, dim=1), strict=True):
        torch.testing.assert_close(part_btv, alone_btv, rtol=1e-11, atol=1e-11)
    sum(_loss(model(document), document) for document in documents).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, f"{name} takes no part"
        torch.testing.assert_close(packed_gradients[name], parameter.grad, rtol=1e-9, atol=1e-9, msg=name)


@TYPICAL_PRESETS
def test_distances_are_those_of_the_positions_given(preset: str):
    # Rotary attention knows only distances, so packing alone cannot tell whether positions are heeded.
    model, ids, positions = hot_decoder(tiny_config(preset)), random_ids(1, 9), torch.arange(9)[None]
    plain = model.logits(model.hidden(ids, positions))
    assert torch.equal(plain, model(ids))
    moved = (model.logits(model.hidden(ids, 2 * positions)) - plain).abs().max()
    if any(isinstance(layer.mixer, Attention) for layer in model.config.layers):
        assert moved > 1e-3
    else:
        assert moved == 0, "a state knows the order of its tokens, and no positions"


@TYPICAL_PRESETS
def test_no_bit_of_a_document_reaches_its_neighbours(preset: str):
    model = hot_decoder(tiny_config(preset))
    documents = _documents()
    before = model.logits(model.hidden(*_packed(documents)))
    documents[2] = (documents[2] + 1) % VOCABULARY
    after = model.logits(model.hidden(*_packed(documents)))
    changed = (before != after).any(dim=-1)[0].split(LENGTHS)
    assert [bool(part.any()) for part in changed] == [False, False, True, False, False]


@TYPICAL_PRESETS
def test_no_token_sees_a_later_one(preset: str):
    model = hot_decoder(tiny_config(preset))
    before, after = random_ids(2, 12), random_ids(2, 12)
    after[:, 7] = (after[:, 7] + 1) % VOCABULARY
    changed = (model(before) != model(after)).any(dim=-1)
    assert not changed[:, :7].any()
    assert changed[:, 7:].all()


@TYPICAL_PRESETS
def test_the_order_of_earlier_tokens_matters(preset: str):
    model = hot_decoder(tiny_config(preset))
    ids, swapped = random_ids(1, 9), random_ids(1, 9)
    swapped[0, [2, 4]] = swapped[0, [4, 2]]
    assert ids[0, 2] != ids[0, 4]
    assert (model(ids) - model(swapped))[0, -1].abs().max() > 1e-3


@TYPICAL_PRESETS
@pytest.mark.parametrize("padding", [1, 6])
def test_left_padding_changes_nothing(preset: str, padding: int):
    model = hot_decoder(tiny_config(preset))
    ids = random_ids(2, 10)
    padded = torch.cat((random_ids(2, padding, seed=9), ids), dim=1)
    mask = torch.ones_like(padded)
    mask[:, :padding] = 0
    torch.testing.assert_close(model(padded, attention_mask=mask)[:, padding:], model(ids), rtol=1e-11, atol=1e-11)


@TYPICAL_PRESETS
def test_bfloat16_compute_keeps_float32_weights_and_gradients(preset: str):
    model = hot_decoder(tiny_config(preset), dtype=torch.float32)
    ids = random_ids(2, 16)
    expected = model(ids)
    model.compute_dtype = torch.bfloat16
    logits = model(ids)
    assert logits.dtype == (torch.bfloat16 if model.config.logit_softcap is None else torch.float32)
    # Hot weights amplify rounding; what counts is that the numbers are bfloat16's and those of the same model.
    assert 0 < (logits - expected).norm() / expected.norm() < 0.1
    logits.square().mean().backward()
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}


@TYPICAL_PRESETS
def test_flops_are_those_that_pytorch_counts(preset: str):
    context = 48
    depth = 1 if preset == "qwen3_next" else 3  # its attention alone: of the delta rule PyTorch counts a part
    config = build_config(preset, depth, vocab_size=VOCABULARY, context=context, width=64, head_dim=16)
    model = hot_decoder(config)
    with FlopCounterMode(display=False) as counter:
        model(random_ids(2, context)).sum().backward()
    assert config.training_flops_per_token(context) == counter.get_total_flops() / (2 * context)


@TYPICAL_PRESETS
def test_a_fresh_model_knows_nothing_and_is_the_same_for_one_seed(preset: str):
    def fresh(seed: int) -> LanguageModel:
        model = LanguageModel(tiny_config(preset))
        initialise(model, seed)
        return model

    ids = random_ids(8, 33, seed=3)
    logits = fresh(0)(ids[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(VOCABULARY), rel=0.05)
    weights, again, other = (dict(fresh(seed).named_parameters()) for seed in (0, 0, 1))
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert not all(torch.equal(weights[name], other[name]) for name in weights)


def test_softcap_is_the_identity_near_zero_and_saturates_at_the_cap():
    logits = torch.tensor([-1e9, -1e-4, 0.0, 1e-4, 15.0, 1e9], dtype=torch.float64)
    capped = softcap(logits, 15.0)
    expected = [-15.0, -1e-4, 0.0, 1e-4, 15 * math.tanh(1.0), 15.0]
    torch.testing.assert_close(capped, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0.0)
    assert softcap(logits, None) is logits
