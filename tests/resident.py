"""How much memory ten thousand short requests leave with an engine, in a process that has done nothing before."""

import gc
import os
from pathlib import Path

from talking import is_free
from tiny import VOCABULARY, hot_decoder, random_ids, tiny_config

import groundup as gu
from groundup.quantize.convert import quantize_model
from groundup.quantize.matrix import WEIGHT_FORMATS

STATUS = Path("/proc/self/statm")
# Each round asks for fifty texts, of which six are given up.
ROUNDS, WARM_UP = 200, 40


def bytes_kept(speculate: gu.PromptLookup | None) -> float:
    """Of each text after a warm-up of two thousand, in which buffers and the allocator find their sizes."""
    model = hot_decoder(tiny_config("llama", kv_heads=1, context=100)).float()
    quantize_model(model, WEIGHT_FORMATS["w8"])
    engine = gu.Engine(model, stop_ids=[], cache_tokens=2048, speculate=speculate)
    for number in range(WARM_UP):
        _ask(engine, number)
    before = _resident_bytes()
    for number in range(WARM_UP, ROUNDS):
        _ask(engine, number)
    assert is_free(engine)
    return (_resident_bytes() - before) / (50 * (ROUNDS - WARM_UP))


def _ask(engine: gu.Engine, number: int) -> None:
    """One round of short requests with several options."""
    prompts = [random_ids(1 + index % 20, seed=50 * number + index).tolist() for index in range(34)]
    stops = tuple(range(number % 5, VOCABULARY, 7))
    engine.generate(prompts[:24], max_tokens=6, temperature=0.8, seed=number, stop_token_ids=stops)
    engine.generate(prompts[24:29], max_tokens=4, n=2, temperature=1.0, top_p=0.9, seed=number, logprobs=2)
    engine.generate(prompts[29:31], max_tokens=4, n=3, beams=3)
    engine.generate(prompts[31:], max_tokens=5, repetition_penalty=1.2, logit_bias={3: 1.0}, bad_words=[(5,)])
    engine.score(prompts[:1])
    for index in range(6):
        stream = engine.pieces([number % VOCABULARY, index], max_tokens=50)
        next(stream)
        stream.close()


def _resident_bytes() -> int:
    """What lies in memory of this process: the second figure of `statm`, in pages (proc(5))."""
    gc.collect()
    return int(STATUS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
