"""The loop: what a step computes does not depend on how its rows are split, ordered or packed."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import SPARSE, VOCABULARY, ListStream, hot_model, tiny_config
from tiny_training import (
    BOS,
    CONTEXT,
    STEPS,
    UnevenRows,
    WatchedRanks,
    corruption_for,
    hot_start,
    loop_config,
    losses,
    orthogonalise_exactly,
    train_tiny,
)
from torch import Tensor

from groundup.errors import UserError
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.experts import Routing
from groundup.model.presets import PRESETS
from groundup.record.metrics import read_lines
from groundup.tokens.batches import IGNORE, Int64s, Rows, RowSource, Source, rows_at
from groundup.tokens.corruption import Corruption
from groundup.train import optim
from groundup.train.learner import TextModel, stacks
from groundup.train.optim import LearningRates
from groundup.train.plan import check_split, resolve_compile, resolve_dtype

ALL_PRESETS = pytest.mark.parametrize("preset", sorted(PRESETS))


def _first_step(out: Path, preset: str, source: RowSource, micro_rows: int) -> tuple[float, list[Tensor]]:
    """Loss and gradients of the first step of a run."""
    out.mkdir()
    ranks = WatchedRanks()
    train_tiny(out, preset, source=source, ranks=ranks, micro_rows=micro_rows, steps=1)
    return losses(out)[0], ranks.gradients[0]


def _by_definition(preset: str) -> tuple[float, list[Tensor]]:
    """The mean over all targets of the first step, in float64 and from full logits, and the gradients of a step.

    These are those of the loss and, with experts, of the mean over rows of each layer's auxiliary losses.
    """
    model = hot_start(preset).double()
    rows = UnevenRows(corruption=corruption_for(preset)).rows(np.arange(loop_config().rows_per_step))
    input_ids, targets, positions, segments = map(torch.from_numpy, rows.arrays())
    if isinstance(model, EncoderDecoder):
        memory = model.encode(*map(torch.from_numpy, rows.source.arrays()))
        logits = model.decoder.logits(model.decoder.hidden(input_ids, positions, segments, memory=memory))
    else:
        logits = model.logits(model.hidden(input_ids, positions, segments))
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    minimised = loss
    if preset in SPARSE:
        corrected = preset == "deepseek_v3"
        for row in rows.split(1):
            routings: list[Routing] = []
            ids, _, places, documents = map(torch.from_numpy, row.arrays())
            model.hidden(ids, places, documents, routings=routings)
            for routing in routings:
                balance, z = _auxiliary_by_definition(routing)
                share = 1e-4 * balance if corrected else 1e-2 * balance + 1e-3 * z
                minimised = minimised + share / loop_config().rows_per_step
    minimised.backward()
    return loss.item(), [parameter.grad for parameter in model.parameters() if parameter.requires_grad]


def _auxiliary_by_definition(routing: Routing) -> tuple[Tensor, Tensor]:
    """E · Σ f P expert by expert, and the mean of (log Σ exp logit)², of the tokens of one row."""
    choices, experts = routing.experts_nc.tolist(), routing.scores_ne.shape[1]
    chosen = [sum(expert in one for one in choices) / sum(map(len, choices)) for expert in range(experts)]
    scores = [(routing.scores_ne[:, expert] / routing.scores_ne.sum(1)).mean() for expert in range(experts)]
    balance = experts * sum(share * score for share, score in zip(chosen, scores, strict=True))
    return balance, (routing.logits_ne.exp().sum(1).log() ** 2).mean()


def _assert_close(preset: str, actual: list[Tensor], expected: list[Tensor], tolerance: float = 1e-5) -> None:
    """All together to `tolerance`; each by itself to twice that, since hot weights in float32 round much."""
    named = hot_model(tiny_config(preset)).named_parameters()
    names = [name for name, parameter in named if parameter.requires_grad]
    # A bias on keys moves all scores of a query alike: what moves it, in turn, is rounding alone.
    pairs = {
        name: (one.double(), other.double())
        for name, one, other in zip(names, actual, expected, strict=True)
        if not name.endswith("mixer.key.bias")
    }
    for name, (one, other) in pairs.items():
        assert (one - other).norm() <= 2 * tolerance * other.norm(), name
    whole, expected_whole = (torch.cat([pair[side].flatten() for pair in pairs.values()]) for side in (0, 1))
    assert (whole - expected_whole).norm() <= tolerance * expected_whole.norm()


@ALL_PRESETS
@pytest.mark.parametrize("micro_rows", [12, 6, 3, 1])
def test_loss_and_gradients_are_the_mean_over_all_targets_however_split(preset: str, micro_rows: int, tmp_path: Path):
    loss, gradients = _first_step(tmp_path / "run", preset, UnevenRows(corruption=corruption_for(preset)), micro_rows)
    expected_loss, expected_gradients = _by_definition(preset)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    _assert_close(preset, gradients, expected_gradients)


class WholeDocuments:
    """Rows that each hold the same whole documents, in an order of their own for each `order`.

    With a corruption the same parts of each document are hidden, whatever the order.
    """

    rows_per_epoch = 100

    def __init__(self, order: int, corruption: Corruption | None) -> None:
        self._order, self._corruption = order, corruption

    def rows(self, numbers: Int64s) -> Rows:
        orders = [np.random.default_rng(self._order + number).permutation(5) for number in numbers.tolist()]
        if self._corruption is not None:
            packed = [self._row(number, np.arange(5)) for number in numbers.tolist()]
            return _reordered(self._corruption(_together(packed), numbers), orders)
        return _together([self._row(number, order) for number, order in zip(numbers.tolist(), orders, strict=True)])

    def _row(self, number: int, order: Int64s) -> Rows:
        content = np.random.default_rng(number)
        lengths = (1, 9, 3, 4, 7)
        documents = [content.integers(3, VOCABULARY, length).tolist() for length in lengths]
        documents = [documents[index] for index in order]
        stream = ListStream(documents)
        assert stream.total_tokens == CONTEXT
        return rows_at(np.array([0]), stream.tokens(0, CONTEXT)[None], stream.offsets, BOS)


def _together(rows: list[Rows]) -> Rows:
    return Rows(*(np.concatenate(arrays) for arrays in zip(*(row.arrays() for row in rows), strict=True)))


def _reordered(rows: Rows, orders: list[Int64s]) -> Rows:
    """The rows with their segments in other places, padding last; of the source likewise."""
    ranks = np.stack([np.append(np.argsort(order), len(order)) for order in orders])  # of segment -1 the last

    def reorder(segments: np.ndarray, arrays: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        places = np.argsort(np.take_along_axis(ranks, segments.astype(np.int64), 1), axis=1, kind="stable")
        return [np.take_along_axis(array, places, 1) for array in arrays]

    source = rows.source and Source(*reorder(rows.source.segments, rows.source.arrays()))
    return Rows(*reorder(rows.segments, rows.arrays()), source)


@ALL_PRESETS
def test_loss_and_gradients_do_not_depend_on_the_order_of_documents_in_a_row(preset: str, tmp_path: Path):
    one, another = (WholeDocuments(order, corruption_for(preset)) for order in (0, 1000))
    assert not np.array_equal(one.rows(np.arange(12)).input_ids, another.rows(np.arange(12)).input_ids)
    loss, gradients = _first_step(tmp_path / "one", preset, one, micro_rows=4)
    other_loss, other_gradients = _first_step(tmp_path / "other", preset, another, micro_rows=4)
    assert loss == pytest.approx(other_loss, rel=1e-5)
    _assert_close(preset, gradients, other_gradients)


@ALL_PRESETS
def test_weights_after_several_steps_do_not_depend_on_the_split(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(optim, "orthogonalise", orthogonalise_exactly)
    models: list[TextModel] = []
    for micro_rows in (12, 2):
        out = tmp_path / str(micro_rows)
        out.mkdir()
        models.append(train_tiny(out, preset, micro_rows=micro_rows, steps=2))
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "12"), rel=1e-5)
    whole, split = ([one for one in model.parameters() if one.requires_grad] for model in models)
    with torch.no_grad():
        # AdamW divides a gradient by its own size: where a sum nearly cancels, rounding moves a weight by a whole rate.
        _assert_close(preset, split, whole, tolerance=1e-4)
        start = hot_start(preset)
        learned = [one for one in start.parameters() if one.requires_grad]
        assert all((one - other).norm() > 1e-3 * one.norm() for one, other in zip(learned, whole, strict=True))


def test_the_stream_of_metrics_tells_every_step(tmp_path: Path):
    source = UnevenRows()
    config = loop_config(bytes_per_token=2.5, evaluations=2)
    train_tiny(tmp_path, source=source, bytes_per_token=2.5, evaluations=2, watch=lambda step: {"seen": step})
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line.get("seen") for line in lines] == [None, None, 3, None, None, 6]
    counts = [UnevenRows().rows(np.arange(12 * step, 12 * step + 12)).target_count() for step in range(STEPS)]
    assert [line["tokens"] for line in lines] == np.cumsum(counts).tolist()
    for line in lines:
        assert line["bits_per_byte"] == pytest.approx(line["loss"] / math.log(2) / 2.5)
        assert line["grad_norm"] > 0
    peak = config.learning_rates.matrices
    assert [line["learning_rate"] / peak for line in lines] == pytest.approx([1, 1, 1, 1, 2 / 3, 1 / 3])
    assert source.asked == list(range(12 * STEPS))


def test_grad_norm_is_that_of_all_gradients_together(tmp_path: Path):
    ranks = WatchedRanks()
    train_tiny(tmp_path, ranks=ranks, steps=1)
    squares = sum(gradient.double().square().sum().item() for gradient in ranks.gradients[0])
    assert read_lines(tmp_path / "metrics.jsonl")[0]["grad_norm"] == pytest.approx(squares**0.5, rel=1e-5)


def test_training_learns(tmp_path: Path):
    train_tiny(tmp_path, steps=60, evaluations=0)
    assert sum(losses(tmp_path)[-5:]) < 0.8 * sum(losses(tmp_path)[:5])


def test_a_budget_in_seconds_ends_near_it(tmp_path: Path):
    train_tiny(tmp_path, steps=None, seconds=0.5)
    seconds = [line["seconds"] for line in read_lines(tmp_path / "timings.jsonl")]
    assert seconds[-1] >= 0.5
    assert all(before < 0.5 for before in seconds[:-1])


def test_a_loss_that_is_no_number_is_the_users_to_mend(tmp_path: Path):
    rates = LearningRates(matrices=1e30, embedding=1e30, head=1e30)
    with pytest.raises(UserError, match=r"test: the loss is (nan|inf) at step \d; lower the learning rates"):
        train_tiny(tmp_path, learning_rates=rates)
    assert all(math.isfinite(loss) for loss in losses(tmp_path))


@pytest.mark.parametrize(
    "preset",
    ["nanochat", *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(PRESETS) if name != "nanochat")],
)
def test_compiled_training_gives_the_losses_of_plain_training(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With rows by which no token's choice of experts is within 4e-5 of another: with those of seed 0, one of mixtral's
    is within 1e-7, and rounding decides."""
    monkeypatch.setattr(optim, "orthogonalise", orthogonalise_exactly)
    for name, compiled in (("plain", False), ("compiled", True)):
        (tmp_path / name).mkdir()
        rows = UnevenRows(seed=1, corruption=corruption_for(preset))
        model = train_tiny(tmp_path / name, preset, source=rows, compile=compiled, steps=3)
        assert all(layer._compiled_call_impl is None for stack in stacks(model) for layer in stack.layers)
    plain, compiled = losses(tmp_path / "plain"), losses(tmp_path / "compiled")
    assert compiled[0] == pytest.approx(plain[0], rel=1e-5)
    assert compiled == pytest.approx(plain, rel=1e-4)


def test_a_batch_that_cannot_be_shared_evenly_is_refused():
    check_split(rows_per_step=12, micro_rows=3, ranks=2)
    check_split(rows_per_step=12, micro_rows=100, ranks=4)
    with pytest.raises(UserError, match="12 rows cannot be split evenly over 5 ranks"):
        check_split(rows_per_step=12, micro_rows=3, ranks=5)
    with pytest.raises(UserError, match=r"6 rows per rank cannot be split evenly into micro-batches of 4 rows"):
        check_split(rows_per_step=12, micro_rows=4, ranks=2)


def test_precision_and_compilation_follow_the_machine_only_when_asked_to():
    assert resolve_dtype("auto", computes_bfloat16=True) == torch.bfloat16
    assert resolve_dtype("auto", computes_bfloat16=False) == torch.float32
    assert resolve_dtype("bfloat16", computes_bfloat16=False) == torch.bfloat16
    assert resolve_dtype("float32", computes_bfloat16=True) == torch.float32
    assert resolve_compile("always", steps=1, seconds=None, flops_per_step=1.0)
    assert not resolve_compile("never", steps=None, seconds=1e6, flops_per_step=1e18)
    assert not resolve_compile("auto", steps=10, seconds=None, flops_per_step=1e9)
    assert not resolve_compile("auto", steps=None, seconds=30.0, flops_per_step=1e9)
