"""What breaks for some texts of an engine ends those alone: others are what the model makes of them by itself."""

from typing import Any

import pytest
from workloads import CountingScheduler, Request, check_alone, serve, workload_model

from groundup.engine.asking import jobs_for
from groundup.engine.blocks import BlockPool
from groundup.engine.choose import make_chooser
from groundup.engine.draft import DraftGuesser
from groundup.engine.guessing import Speculation
from groundup.engine.jobs import Writing
from groundup.engine.loop import Loop
from groundup.engine.runner import Runner
from groundup.engine.sampling import Sampling
from groundup.engine.sequence import Sequence, Step

BLOCKS = 60
MODEL = workload_model("llama")


class Breaking(Runner):
    """Breaks once: at one call of `run`, `logits` or `score`.

    calls: how often that was called. broken: sequences whose tokens were at their ends in the step that it broke in.
    """

    def __init__(self, what: str, at: int) -> None:
        super().__init__(MODEL, BLOCKS)
        self._what, self._at, self._step = what, at, Step([], [])
        self.calls = 0
        self.broken: list[Sequence] = []

    def run(self, step: Step) -> Any:
        self._step = step
        self._reach("run")
        return super().run(step)

    def logits(self, *arguments: Any) -> Any:
        self._reach("logits")
        return super().logits(*arguments)

    def score(self, *arguments: Any) -> Any:
        self._reach("score")
        return super().score(*arguments)

    def _reach(self, what: str) -> None:
        if what == self._what:
            self.calls += 1
            if self.calls == self._at:
                self.broken = [chunk.sequence for chunk in self._step.chunks if chunk.is_last]
                raise RuntimeError(f"{what} is broken")


def _requests() -> list[Request]:
    """Texts to write and to score, some of which come when others are being written; prompts take several steps."""
    return [
        Request(0, 20, 3, 12, copies=3),
        Request(0, 40, 5, 0, scores=True),
        Request(1, 9, 4, 9),
        Request(2, 50, 2, 0, scores=True),
        Request(4, 60, 9, 6),
    ]


def _ended_by(request: Request) -> list[Exception]:
    """The errors that its jobs were told, each as the last thing."""
    told = [request.told] if request.scores else request.told
    assert not any(isinstance(one, Exception) for each in told for one in each[:-1])
    return [each[-1] for each in told if isinstance(each[-1], Exception)]


@pytest.mark.parametrize("at", [1, 2, 5, 11])
def test_logits_that_cannot_be_computed_end_the_texts_that_they_are_for(at: int):
    """Neither prompts that are still read nor texts that are scored."""
    runner, scheduler, requests = Breaking("logits", at), CountingScheduler(BlockPool(BLOCKS), 24, 6), _requests()
    serve(Loop(runner, scheduler), scheduler, requests)
    whole = []
    for request in requests:
        # Copies of a leader whose first token fails have begun as little as it has gone on.
        hit = [job for job in request.jobs if job.sequence in runner.broken or job.sequence is None]
        hit = [] if request.scores else hit
        assert [str(error) for error in _ended_by(request)] == ["logits is broken"] * len(hit)
        whole += [] if hit else [request]
    assert 0 < len(whole) < len(requests)
    check_alone(MODEL, *whole)


@pytest.mark.parametrize("at", [1, 2, 4])
def test_a_text_that_cannot_be_scored_fails_alone(at: int):
    runner, scheduler, requests = Breaking("score", at), CountingScheduler(BlockPool(BLOCKS), 24, 6), _requests()
    serve(Loop(runner, scheduler), scheduler, requests)
    (broken,) = (request for request in requests if _ended_by(request))
    assert broken.scores and [str(error) for error in broken.told] == ["score is broken"]
    check_alone(MODEL, *(request for request in requests if request is not broken))


@pytest.mark.parametrize("what", ["run", "logits"])
@pytest.mark.parametrize("at", [1, 2, 7])
def test_a_draft_that_breaks_ends_guesses_and_no_text(what: str, at: int, monkeypatch: pytest.MonkeyPatch):
    """Texts that come later are guessed for again; of those before, the draft keeps nothing, half made as it may be."""
    shown: list[Exception] = []
    draft, pool = Breaking(what, at), BlockPool(BLOCKS)

    def show(kind: type, error: Exception, traceback: object) -> None:
        assert pool.available == pool.count
        shown.append(error)

    monkeypatch.setattr("sys.excepthook", show)
    speculation = Speculation(DraftGuesser(draft, CountingScheduler(pool, 24, 6)), guesses=4, step_guesses=20)
    scheduler, requests = CountingScheduler(BlockPool(BLOCKS), 48, 6), [*_requests(), Request(60, 30, 3, 9)]
    serve(Loop(Runner(MODEL, BLOCKS), scheduler, speculation), scheduler, requests)
    check_alone(MODEL, *requests)
    assert draft.calls > at and pool.available == pool.count
    assert [str(error) for error in shown] == [f"{what} is broken"]
    (note,) = shown[0].__notes__
    assert note.endswith("texts of the engine are written on without guesses, and no different")


class _Unspellable:
    """Stands for a text that no token can be added to."""

    stopped = False

    def copy(self) -> "_Unspellable":
        return self

    def push(self, token: int) -> str:
        raise RuntimeError("no letter for it")


def test_a_search_that_breaks_between_its_forks_and_their_names_leaves_none_of_them():
    scheduler, text = CountingScheduler(BlockPool(BLOCKS), 24, 6), Request(0, 20, 3, 12)
    loop, told = Loop(Runner(MODEL, BLOCKS), scheduler), []
    prompt, sampling = [5, 6, 7], Sampling(beams=3)
    (search,) = jobs_for(prompt, 8, make_chooser(sampling, prompt), _Unspellable(), lambda: told.append)  # type: ignore[arg-type]
    loop.begin(search)
    serve(loop, scheduler, [text])
    assert [str(error) for error in told] == ["no letter for it"]
    check_alone(MODEL, text)


def test_a_job_that_cannot_be_begun_is_told_and_the_next_one_is_begun():
    scheduler, text, told = CountingScheduler(BlockPool(4), 24, 3), Request(0, 20, 3, 12), []
    loop = Loop(Runner(MODEL, 4), scheduler)
    loop.begin(Writing([1] * 60, 10, make_chooser(Sampling(), [1]), None, told.append))
    serve(loop, scheduler, [text])
    assert [str(error) for error in told] == ["69 tokens do not fit into the cache, which holds 64"]
    check_alone(MODEL, text)
