"""Any workload gives what the model gives without a cache: arrivals, copies, shared beginnings, chunks, preemption.

The engine's loop is turned by hand here, so that requests come and go at chosen steps.
"""

import gc
import tracemalloc
from collections.abc import Sequence as Items

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import hot_decoder
from torch import Tensor
from workloads import (
    CASES,
    CONFIGS,
    REQUESTS,
    CountingScheduler,
    Request,
    Unreliable,
    Watching,
    check_alone,
    finish,
    pool_of,
    runner_of,
    serve,
    workload_model,
)

from groundup.engine.blocks import BLOCK_TOKENS, BlockPool
from groundup.engine.choose import Choice
from groundup.engine.draft import DraftGuesser
from groundup.engine.guessing import Guesser, Speculation
from groundup.engine.jobs import Writing
from groundup.engine.loop import Loop
from groundup.engine.rows import Logits
from groundup.engine.runner import Runner, is_recurrent
from groundup.engine.scheduler import Scheduler
from groundup.engine.sequence import Step
from groundup.engine.sight import reach
from groundup.model.language_model import LanguageModel
from groundup.model.lora import Adapter


def _turn(
    model: LanguageModel,
    requests: list[Request],
    blocks: int,
    budget: int,
    most_running: int,
    guesser: Guesser | None = None,
    host: int = 0,
    packed: bool = False,
    block_size: int = BLOCK_TOKENS,
    further: int = 0,
) -> CountingScheduler:
    """Serve the requests to their ends. host: blocks in the host's memory. packed: see `CASES`. further: `pool_of`."""
    pool = pool_of(model, blocks, budget, most_running, host, block_size, further)
    scheduler = CountingScheduler(pool, budget, most_running, recurrent=is_recurrent(model), reach=reach(model))
    speculation = None if guesser is None else Speculation(guesser, guesses=6, step_guesses=30)
    serve(Loop(runner_of(model, pool, packed), scheduler, speculation), scheduler, requests)
    return scheduler


@pytest.mark.parametrize(("name", "packed"), CASES)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    requests=st.lists(REQUESTS, min_size=2, max_size=6),
    blocks=st.integers(6, 14),
    budget=st.sampled_from([5, 24, 100]),
    most_running=st.integers(1, 5),
    host=st.sampled_from([0, 2, 20]),
    further=st.integers(0, 3),
)
def test_any_workload_gives_the_logits_of_the_model_alone(
    name: str,
    packed: bool,
    requests: list[Request],
    blocks: int,
    budget: int,
    most_running: int,
    host: int,
    further: int,
):
    requests = [request.fresh() for request in requests]
    model, block_size = workload_model(name), 24 if packed else BLOCK_TOKENS
    _turn(
        model,
        requests,
        blocks,
        budget,
        most_running,
        host=host,
        packed=packed,
        block_size=block_size,
        further=further,
    )
    check_alone(workload_model(name), *requests)


@pytest.mark.parametrize(
    ("name", "packed"), [(name, packed) for name, packed in CASES if not is_recurrent(workload_model(name))]
)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    requests=st.lists(REQUESTS, min_size=2, max_size=6),
    blocks=st.integers(6, 14),
    budget=st.sampled_from([5, 24, 100]),
    most_running=st.integers(1, 5),
)
def test_any_workload_with_guesses_gives_the_logits_of_the_model_alone(
    name: str, packed: bool, requests: list[Request], blocks: int, budget: int, most_running: int
):
    requests = [request.fresh() for request in requests]
    guesser = Unreliable(workload_model(name), blocks, most_running)
    _turn(workload_model(name), requests, blocks, budget, most_running, guesser, packed=packed)
    check_alone(workload_model(name), *requests)
    assert guesser.pool.available == blocks


def test_right_guesses_save_steps():
    """Of the text's 40 tokens the first has no guesses; then come two, four, and six with each that is chosen."""
    model, request, steps = workload_model("llama"), Request(0, 20, 1, 40), []
    handle = model.layers[0].register_forward_pre_hook(lambda _, arguments: steps.append(arguments[0].shape[1]))
    draft = hot_decoder(CONFIGS["llama"]())
    guesser = DraftGuesser(Runner(draft, 40), Scheduler(BlockPool(40), 100, 4))
    _turn(model, [request], 40, 100, 4, guesser)
    handle.remove()
    assert steps == [21, 3, 5, 7, 7, 7, 7, 3]
    check_alone(model, request)


@pytest.mark.parametrize(("name", "packed"), CASES)
def test_preemption_forks_and_a_shared_beginning_in_one_workload(name: str, packed: bool):
    """Three texts that begin alike, in a pool too small for all, one of them in four copies."""
    model = workload_model(name)
    requests = [Request(0, 40, 3, 30), Request(4, 40, 5, 30, copies=4), Request(6, 48, 2, 25), Request(6, 50, 9, 1)]
    scheduler = _turn(model, requests, 7 if reach(model) is None else 5, 24, 6, packed=packed)
    check_alone(model, *requests)
    later = [piece.cached for request in requests[1:] for told in request.told for piece in told[-1:]]
    if reach(model) is None:
        assert scheduler.preempted > 0
        assert max(later) >= 2 * BLOCK_TOKENS, "nothing was found in the cache"


@pytest.mark.parametrize(("name", "packed"), CASES)
def test_what_gave_way_comes_back_from_the_host_instead_of_being_computed_again(name: str, packed: bool):
    model = workload_model(name)
    blocks = 7 if reach(model) is None else 5

    def served(host: int) -> CountingScheduler:
        requests = [Request(0, 30, 3, 40), Request(1, 30, 5, 40, copies=3), Request(2, 0, 40, 25), Request(3, 0, 41, 9)]
        scheduler = _turn(model, requests, blocks, 24, 6, host=host, packed=packed)
        check_alone(model, *requests)
        assert all(piece.cached <= 32 for request in requests for told in request.told for piece in told)
        return scheduler

    without, with_host = served(0), served(40)
    if without.preempted:
        assert with_host.brought_back > 0
        assert with_host.computed < without.computed


@pytest.mark.parametrize(
    ("name", "packed"),
    [case for case in CASES if case[0] in ("llama", "gemma2", "deepseek_v3", "mamba2", "groundup", "windowed")],
)
def test_logits_in_float32_are_those_of_the_model_alone_but_for_rounding(name: str, packed: bool):
    """Other paths are taken there: fused attention also for single tokens."""
    model = hot_decoder(CONFIGS[name](), dtype=torch.float32)
    requests = [Request(0, 40, 3, 30), Request(4, 40, 5, 30, copies=2), Request(6, 48, 2, 25)]
    _turn(model, requests, 10, 24, 6, packed=packed)
    check_alone(model, *requests)


def test_a_text_that_is_scored_can_give_way_and_is_scored_anew():
    requests = [Request(0, 20, 1, 50), Request(1, 60, 1, 1, scores=True)]
    scheduler = _turn(workload_model("llama"), requests, 7, 2, 2)
    assert scheduler.preempted == 1
    check_alone(workload_model("llama"), *requests)


def test_no_more_than_half_of_what_is_gathered_is_padding():
    """Texts of 76, 44, 34 and 4 tokens make two calls; to short ones it does not apply."""
    model = workload_model("llama")
    gathered: list[tuple[int, int]] = []
    handle = model.layers[0].register_forward_pre_hook(
        lambda _, arguments: gathered.append((arguments[0].shape[0], arguments[3]._slots_bs.shape[1]))
    )
    requests = [Request(0, 70, 5, 9), Request(0, 30, 3, 9), Request(0, 40, 3, 9), Request(0, 2, 1, 9)]
    _turn(model, requests, 40, 400, 8)
    handle.remove()
    assert gathered[4:6] == [(2, 76), (2, 34)]
    check_alone(model, *requests)


@pytest.mark.parametrize("packed", [False, True])
def test_blocks_out_of_sight_are_given_back_while_a_text_is_written(packed: bool):
    model = workload_model("windowed")
    pool = BlockPool(8)
    loop = Loop(runner_of(model, pool, packed), Scheduler(pool, 16, 2, reach=reach(model)))
    request = Request(0, 5, 1, 90)
    request.begin(loop, 0)
    held: list[int] = []
    finish(loop, lambda: held.append(pool.count - pool.available))
    assert max(held) == 3  # 20 tokens that can be seen lie in three blocks at most, and the newest in one of them
    check_alone(model, request)


class NoModel(Runner):
    """Computes nothing: what is left is the engine's own work."""

    def __init__(self) -> None:
        pass

    def run(self, step: Step) -> Tensor:
        for chunk in step.chunks:
            chunk.sequence.state = object()
        return torch.zeros(sum(chunk.length for chunk in step.chunks), 1)

    def logits(self, hidden_nd: Tensor, adapters: Items[Adapter | None]) -> Tensor:
        return hidden_nd


def test_ten_thousand_requests_leave_memory_flat():
    scheduler = Scheduler(BlockPool(20), 64, 8, recurrent=True)
    loop = Loop(NoModel(), scheduler)
    sizes = []
    tracemalloc.start()
    for number in range(10_000):
        prompt = [number, *range(number % 40)]
        loop.begin(Writing(prompt, 2, Watching(), None, lambda piece: None))
        while len(scheduler.running) + len(scheduler.waiting) > 7:
            loop.step()
        if number in (5_000, 9_999):
            finish(loop)
            gc.collect()  # which also gives back what Python keeps for new tuples
            sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert scheduler.pool.available == 20
    # One object kept of each request would be 250 kB and more; other tests' objects come and go by some 20.
    assert sizes[1] < sizes[0] + 100_000


def test_a_chooser_that_fails_ends_its_own_text_alone():
    class Broken(Watching):
        def choose(self, logits: Logits) -> Choice:
            if len(self.seen) == 3:
                raise RuntimeError("no token fits")
            return super().choose(logits)

    model = workload_model("llama")
    pool = BlockPool(20)
    loop = Loop(Runner(model, 20), Scheduler(pool, 64, 4))
    good, bad = Request(0, 20, 3, 12, copies=2), Request(0, 20, 4, 12)
    for number, request in enumerate((good, bad)):
        request.begin(loop, number)
    bad.jobs[0].chooser = Broken()
    finish(loop)
    check_alone(model, good)
    assert [type(one).__name__ for one in bad.told[0]] == ["Piece"] * 3 + ["RuntimeError"]
    assert pool.available == 20


def test_a_model_that_fails_ends_what_it_was_computing_and_the_engine_goes_on():
    model = workload_model("llama")
    pool = BlockPool(20)
    loop = Loop(Runner(model, 20), Scheduler(pool, 64, 4))
    first = Request(0, 20, 3, 12, copies=2)
    first.begin(loop, 0)

    def fail(*_: object) -> None:
        raise MemoryError("no memory")

    handle = model.layers[0].register_forward_pre_hook(fail)
    loop.step()
    handle.remove()
    assert [type(one) for told in first.told for one in told] == [MemoryError, MemoryError]
    assert pool.available == 20 and not loop.is_busy
    second = Request(0, 20, 3, 12)
    second.begin(loop, 1)
    finish(loop)
    check_alone(model, second)
