"""llama.cpp through its C API, as its own `llama-bench` and `llama-batched-bench` measure it.

    llama_cpp_side.py TASK
    llama_cpp_side.py --quantize FILE OUT TYPE

The second form makes a file of type q4_0 or q8_0 of one in half precision, with llama.cpp's own mixture of types.
Nothing is sampled: the tokens of a step are random, as there. A context holds as many sequences as there are streams.
"""

import sys
import time
from typing import Any

import llama_cpp as api
import numpy as np
from likelihood import nats_of
from task import Task, answer

IMPORTED = time.monotonic()
# Sequences have a buffer each, whose size is rounded up to this.
PADDING = 256


class LlamaCpp:
    """A GGUF file."""

    def __init__(self, task: Task) -> None:
        self._task = task
        api.llama_log_set(_SILENT, None)
        api.llama_backend_init()
        self._model = api.llama_model_load_from_file(task.model.encode(), api.llama_model_default_params())
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {task.model}")

    def prefill(self, prompt: list[int]) -> float:
        context = self._context([prompt], 1)
        batch = _batch([[(token, place) for place, token in enumerate(prompt)]])
        seconds = self._timed(context, [batch])
        api.llama_free(context)
        return seconds

    def decode(self, prompts: list[list[int]], new_tokens: int) -> float:
        """All streams are one batch, in each step one token of each, chosen beforehand."""
        context = self._context(prompts, new_tokens)
        for sequence, prompt in enumerate(prompts):
            self._timed(context, [_batch([[(token, place) for place, token in enumerate(prompt)]], sequence)])
        follow = self._task.prompts(len(prompts), new_tokens - 1, seed=3)
        start = len(prompts[0])
        steps = [_batch([[(one[step], start + step)] for one in follow]) for step in range(new_tokens - 1)]
        seconds = self._timed(context, steps)
        api.llama_free(context)
        return seconds

    def nats(self, texts: list[list[int]]) -> float:
        """Each text is one batch in a context of its own, and tells the logits behind every token."""
        vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        nats = 0.0
        for text in texts:
            context = self._context([text], 0)
            self._timed(context, [_batch([[(token, place) for place, token in enumerate(text)]], every_logits=True)])
            logits_tv = np.ctypeslib.as_array(api.llama_get_logits(context), (len(text), vocab_size))
            nats += nats_of(text, logits_tv)
            api.llama_free(context)
        return nats

    def extras(self, task: Task) -> dict[str, Any]:
        return {"system": api.llama_print_system_info().decode(), "bytes": api.llama_model_size(self._model)}

    def _context(self, prompts: list[list[int]], new_tokens: int) -> Any:
        """A context that holds exactly these texts; everything else is as llama.cpp has it by itself."""
        each = -(-(len(prompts[0]) + new_tokens) // PADDING) * PADDING
        params = api.llama_context_default_params()
        params.n_ctx = each * len(prompts)
        params.n_seq_max = len(prompts)
        params.n_threads = params.n_threads_batch = self._task.threads
        context = api.llama_init_from_model(self._model, params)
        if not context:
            raise SystemExit(f"llama.cpp cannot make a context of {params.n_ctx} tokens")
        return context

    def _timed(self, context: Any, batches: list[Any]) -> float:
        """Seconds that the batches take, one after the other; they are freed."""
        begun = time.perf_counter()
        for batch in batches:
            if api.llama_decode(context, batch) != 0:
                raise SystemExit("llama.cpp cannot compute a batch")
            api.llama_synchronize(context)
        seconds = time.perf_counter() - begun
        for batch in batches:
            api.llama_batch_free(batch)
        return seconds


def _batch(sequences: list[list[tuple[int, int]]], first_sequence: int = 0, every_logits: bool = False) -> Any:
    """(token, place) of each sequence; logits are wanted of the last of each, or of all."""
    rows = [
        (token, place, first_sequence + sequence, every_logits or place == tokens[-1][1])
        for sequence, tokens in enumerate(sequences)
        for token, place in tokens
    ]
    batch = api.llama_batch_init(len(rows), 0, 1)
    batch.n_tokens = len(rows)
    for row, (token, place, sequence, is_last) in enumerate(rows):
        batch.token[row], batch.pos[row] = token, place
        batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
        batch.logits[row] = is_last
    return batch


def _quantize(path: str, out: str, type: str) -> None:
    params = api.llama_model_quantize_default_params()
    params.ftype = {"q4_0": api.LLAMA_FTYPE_MOSTLY_Q4_0, "q8_0": api.LLAMA_FTYPE_MOSTLY_Q8_0}[type]
    if api.llama_model_quantize(path.encode(), out.encode(), params) != 0:
        raise SystemExit(f"llama.cpp cannot quantize {path}")


_SILENT = api.llama_log_callback(lambda level, text, data: None)

if __name__ == "__main__":
    if sys.argv[1] == "--quantize":
        _quantize(*sys.argv[2:5])
    else:
        answer(LlamaCpp, IMPORTED)
