"""`generate` of `transformers` in bfloat16, or of OpenVINO through `optimum-intel`, which has the same face.

    transformers_side.py TASK [openvino]
    transformers_side.py --export FOLDER OUT

The second form writes a model for OpenVINO, its weights in 4 bits: symmetric, groups of 128.
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from task import Task, answer

WITH_OPENVINO = sys.argv[2:] == ["openvino"] or sys.argv[1:2] == ["--export"]
if WITH_OPENVINO:
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
else:
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
        self._model: Any = _openvino(task) if WITH_OPENVINO else _transformers(task)
        self._model.generation_config.eos_token_id = None
        self._model.generation_config.pad_token_id = 0

    def prefill(self, prompt: list[int]) -> float:
        begun = time.perf_counter()
        return self._write([prompt], 1)[0] - begun

    def decode(self, prompts: list[list[int]], new_tokens: int) -> float:
        came = self._write(prompts, new_tokens)
        return came[-1] - came[0]

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


def _transformers(task: Task) -> Any:
    return AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.bfloat16)


def _openvino(task: Task) -> Any:
    settings = {"INFERENCE_NUM_THREADS": str(task.threads), "PERFORMANCE_HINT": "LATENCY"}
    return OVModelForCausalLM.from_pretrained(task.model, ov_config=settings)


def _export(folder: Path, out: Path) -> None:
    config = OVWeightQuantizationConfig(bits=4, sym=True, group_size=128)
    model = OVModelForCausalLM.from_pretrained(folder, export=True, compile=False, quantization_config=config)
    model.save_pretrained(out)


if __name__ == "__main__":
    if sys.argv[1] == "--export":
        _export(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        answer(Generate, IMPORTED)
