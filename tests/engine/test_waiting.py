"""Whoever waits for an engine: streams, tasks and threads beside each other; what is given up is gone at once."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from queue import SimpleQueue

import pytest
import torch
from talking import is_free
from tiny import greedy, hot_decoder, random_ids, tiny_config

import groundup as gu
from groundup.engine.asking import Listener
from groundup.engine.completion import Heard
from groundup.engine.jobs import Piece
from groundup.engine.sampling import Sampling
from groundup.model.language_model import LanguageModel

PROMPTS = [random_ids(length, seed=length).tolist() for length in (7, 1, 40, 3, 33)]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """In float64, where rounding never decides between two tokens."""
    return hot_decoder(tiny_config("llama", kv_heads=1, context=100))


def test_a_stream_that_is_closed_frees_its_blocks(model: LanguageModel):
    engine = gu.Engine(model, stop_ids=[])
    stream = engine.pieces(PROMPTS[2], max_tokens=50)
    next(stream)
    stream.close()
    assert is_free(engine)


def test_pieces_are_told_in_the_engines_thread_and_given_up_where_an_error_leaves(model: LanguageModel):
    engine = gu.Engine(model, stop_ids=[3])
    told: list[list[Piece]] = []
    told_by: set[str] = set()
    ends: SimpleQueue[None] = SimpleQueue()

    def listen() -> Listener:
        own: list[Piece] = []
        told.append(own)

        def tell(event: Heard) -> None:
            assert not isinstance(event, Exception)
            own.append(event)
            told_by.add(threading.current_thread().name)
            if event.ending is not None:
                ends.put(None)

        return tell

    with engine.telling(PROMPTS, listen, Sampling(max_tokens=9)):
        for _ in PROMPTS:
            ends.get(timeout=60)
    assert [[piece.choice.token for piece in own] for own in told] == [greedy(model, one, 9) for one in PROMPTS]
    assert told_by == {"groundup-engine"}
    with pytest.raises(KeyError), engine.telling(PROMPTS, listen, Sampling(max_tokens=60)):
        raise KeyError
    assert is_free(engine)
    with pytest.raises(ValueError, match=r"prompts\[0\]: a prompt needs"), engine.telling([[]], listen, Sampling()):
        pytest.fail("nothing is written")


def test_a_question_does_not_wait_for_all_texts_of_another_call(model: LanguageModel):
    engine = gu.Engine(model, stop_ids=[], most_running=2)
    ends: SimpleQueue[None] = SimpleQueue()

    def tell(event: Heard) -> None:
        if isinstance(event, Exception) or event.ending is not None:
            ends.put(None)

    with engine.telling([[1, 2, 3]] * 400, lambda: tell, Sampling(max_tokens=3)):
        ends.get(timeout=60)
        engine.generate(PROMPTS[1:2], max_tokens=1)
        assert ends.qsize() < 200
        for _ in range(399):
            ends.get(timeout=60)


def test_many_tasks_share_the_engine_and_those_cancelled_are_gone(model: LanguageModel):
    engine = gu.Engine(model, stop_ids=[], cache_tokens=320, step_tokens=24, most_running=6)
    expected = [one.tokens for one in engine.generate(PROMPTS, max_tokens=30)]

    async def read(prompt: list[int]) -> list[int]:
        return [piece.choice.token async for piece in engine.apieces(prompt, max_tokens=30)]

    async def main() -> None:
        pairs = [engine.agenerate([PROMPTS[4]], n=2, temperature=1.0, max_tokens=60) for _ in range(3)]
        doomed = [asyncio.create_task(pair) for pair in pairs]
        stream = engine.astream(PROMPTS[4], max_tokens=60)
        reading = asyncio.create_task(anext(stream, None))
        tasks = [asyncio.create_task(read(prompt)) for prompt in PROMPTS]
        together = asyncio.create_task(engine.agenerate(PROMPTS, max_tokens=30))
        await asyncio.sleep(0)
        for task in (*doomed, reading):
            task.cancel()
        assert await asyncio.gather(*tasks) == expected
        assert [one.tokens for one in await together] == expected
        ends = await asyncio.gather(*doomed, reading, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends)
        with pytest.raises(ValueError, match="at least one token"):
            await engine.agenerate([[]])

    asyncio.run(main())
    assert is_free(engine)


def test_scores_and_vectors_are_awaited_beside_texts(model: LanguageModel):
    engine = gu.Engine(model, stop_ids=[], step_tokens=24, most_running=4)
    scores, vectors_bd = engine.score(PROMPTS[2:]), engine.embed(PROMPTS)
    expected = [one.tokens for one in engine.generate(PROMPTS, max_tokens=20)]

    async def main() -> None:
        texts, found, vectors, none = await asyncio.gather(
            engine.agenerate(PROMPTS, max_tokens=20),
            engine.ascore(PROMPTS[2:]),
            engine.aembed(PROMPTS),
            engine.aembed([]),
        )
        assert [one.tokens for one in texts] == expected
        for one, other in zip(found, scores, strict=True):
            assert one.tokens == other.tokens and one.logprobs == pytest.approx(other.logprobs, rel=1e-9)
        torch.testing.assert_close(vectors, vectors_bd, rtol=1e-9, atol=1e-9)
        assert none.shape == (0, 32)
        for ask in (engine.ascore, engine.aembed):
            with pytest.raises(ValueError, match=r"texts\[1\]: a prompt needs at least one token"):
                await ask([[1], []])

    asyncio.run(main())
    assert is_free(engine)


def test_what_is_no_longer_awaited_is_not_computed(model: LanguageModel):
    """Scores of 40 texts of 90 tokens need 150 steps, their vectors 40 calls: after the first, no more begin."""
    texts = [random_ids(90, seed=seed).tolist() for seed in range(40)]
    engine = gu.Engine(model, stop_ids=[], step_tokens=24, most_running=4)
    calls: list[int] = []
    begun, cancelled = threading.Event(), threading.Event()

    def watch(_: object, arguments: tuple[torch.Tensor, ...]) -> None:
        calls.append(arguments[0].shape[1])
        begun.set()
        assert cancelled.wait(60)

    async def main(ask: Callable[..., Awaitable[object]]) -> None:
        task = asyncio.ensure_future(ask(texts))
        await asyncio.to_thread(begun.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        cancelled.set()
        assert await asyncio.to_thread(is_free, engine)

    handle = model.layers[0].register_forward_pre_hook(watch)
    for ask, most in ((engine.ascore, 4), (engine.aembed, 1)):
        asyncio.run(main(ask))
        assert 1 <= len(calls) <= most
        calls.clear()
        begun.clear()
        cancelled.clear()
    handle.remove()


def test_threads_share_the_engine(model: LanguageModel):
    engine = gu.Engine(model, stop_ids=[])
    expected = [one.tokens for one in engine.generate(PROMPTS, max_tokens=15)]
    found: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        found[number] = engine.generate([PROMPTS[number % 5]], max_tokens=15)[0].tokens

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(10)] == expected * 2
    assert is_free(engine)
