"""`generate` of `transformers` in bfloat16."""

import time
from typing import Any

import torch
from likelihood import nats_of
from task import Task, answer
from transformers import AutoModelForCausalLM

IMPORTED = time.monotonic()


class Clock:
    """A stopping criterion that stops nothing and notes when each token was there."""

    def __init__(self) -> None:
        self.came: list[float] = []

    def __call__(self, ids_bt: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.came.append(time.perf_counter())
        return torch.zeros(len(ids_bt), dtype=torch.bool)


class Generate:
    """A model folder."""

    def __init__(self, task: Task) -> None:
        torch.set_num_threads(task.threads)
        self._model: Any = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.bfloat16)
        self._model.generation_config.eos_token_id = None
        self._model.generation_config.pad_token_id = 0

    def prefill(self, prompt: list[int]) -> float:
        begun = time.perf_counter()
        return self._write([prompt], 1)[0] - begun

    def decode(self, prompts: list[list[int]], new_tokens: int) -> float:
        came = self._write(prompts, new_tokens)
        return came[-1] - came[0]

    @torch.no_grad()
    def nats(self, texts: list[list[int]]) -> float:
        return sum(nats_of(text, self._model(torch.tensor([text])).logits[0].float().numpy()) for text in texts)

    def extras(self, task: Task) -> dict[str, Any]:
        return {}

    @torch.no_grad()
    def _write(self, prompts: list[list[int]], new_tokens: int) -> list[float]:
        """When each token came, of all prompts together."""
        clock, ids_bt = Clock(), torch.tensor(prompts)
        self._model.generate(
            input_ids=ids_bt,
            attention_mask=torch.ones_like(ids_bt),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            stopping_criteria=[clock],
        )
        if len(clock.came) != new_tokens:
            raise SystemExit(f"{len(clock.came)} tokens were written, not {new_tokens}")
        return clock.came


if __name__ == "__main__":
    answer(Generate, IMPORTED)
