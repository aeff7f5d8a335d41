"""Many replies at once are those that come one by one, calls of the calculator included."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from groundup.assist.chat import MAX_CALLS, Text, load_assistant, stream_reply
from groundup.assist.replies import reply_to_all
from groundup.engine.completion import Completion
from groundup.engine.sampling import Sampling
from groundup.tokens.config import CONTROL_TOKENS, PATTERNS
from groundup.tokens.tokenizer import Tokenizer, train


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train(iter([["any text"]]), len(CONTROL_TOKENS) + 256, PATTERNS["code"]))


class Arithmetician:
    """Calls the calculator with what it was asked, then repeats what it came to."""

    max_positions = 400

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
        return [Completion(list(prompt), self._answer(list(prompt)), "", [], "stop", 0) for prompt in prompts]

    def _answer(self, prompt: list[int]) -> list[int]:
        control = self.tokenizer.control
        asked = self._turn(prompt, control["<|user|>"])
        if asked == "loop":
            return [control["<|tool_call|>"], *self.tokenizer.encode("1+1")]
        if asked == "fill":
            return [control["<|tool_call|>"], *self.tokenizer.encode("1+1" + " " * 200)]
        if control["<|tool_result|>"] in prompt:
            return self.tokenizer.encode("It is " + self._turn(prompt, control["<|tool_result|>"]))
        return [control["<|tool_call|>"], *self.tokenizer.encode(asked)]

    def _turn(self, prompt: list[int], marker: int) -> str:
        start = len(prompt) - prompt[::-1].index(marker)
        return self.tokenizer.decode(prompt[start : prompt.index(self.tokenizer.end_id, start)])


def test_calls_are_computed_for_each_conversation_on_its_own(tokenizer: Tokenizer):
    questions = [[{"role": "user", "content": text}] for text in ("6*7", "2**10", "10/4")]
    done: list[float] = []
    answers = reply_to_all(Arithmetician(tokenizer), questions, Sampling(), done.append)
    assert answers == ["It is 42", "It is 1024", "It is 2.5"]
    assert sum(done) == 3
    assert [len(question) for question in questions] == [1, 1, 1]  # what was asked is left as it was


def test_a_model_that_only_calls_is_stopped_and_counted(tokenizer: Tokenizer):
    done: list[float] = []
    answers = reply_to_all(Arithmetician(tokenizer), [[{"role": "user", "content": "loop"}]], Sampling(), done.append)
    assert answers == [""] and sum(done) == 1 and MAX_CALLS >= 1


def test_calls_that_fill_the_context_end_the_reply_and_nothing_else(tokenizer: Tokenizer):
    questions = [[{"role": "user", "content": text}] for text in ("fill", "6*7")]
    done: list[float] = []
    answers = reply_to_all(Arithmetician(tokenizer), questions, Sampling(), done.append)
    assert answers == ["", "It is 42"]
    assert sum(done) == 2


def test_together_is_one_by_one(pretrained: Callable[[str], Path]):
    engine = load_assistant(pretrained("nanochat"))
    texts = ["Hi", "What does def do?", "import os", "A rather longer question than the others?"]
    conversations = [[{"role": "user", "content": text}] for text in texts]
    sampling = Sampling(max_tokens=8)
    together = reply_to_all(engine, conversations, sampling)
    alone = [
        "".join(event.text for event in stream_reply(engine, one, sampling) if isinstance(event, Text))
        for one in conversations
    ]
    assert together == alone and any(together)
