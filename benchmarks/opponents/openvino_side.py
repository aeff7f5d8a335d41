"""OpenVINO through its own runtime: one compiled model that keeps keys and values in its state.

    openvino_side.py TASK
    openvino_side.py --export FOLDER OUT [int4]

The second form writes a model with `optimum-intel`, its weights as they are or in 4 bits: symmetric, groups of 128.
Nothing is sampled, as on llama.cpp's side: all streams are one batch, and the tokens of a step are random. When speed
is measured the head sees the last token of each text alone, as in OpenVINO's own pipelines; precisions of activations
and keys are those that OpenVINO chooses for this processor.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino
from likelihood import nats_of
from openvino import opset13
from task import Task, answer

IMPORTED = time.monotonic()


class OpenVino:
    """A folder that optimum wrote."""

    def __init__(self, task: Task) -> None:
        self._task = task
        core = openvino.Core()
        model = core.read_model(Path(task.model) / "openvino_model.xml")
        if task.texts is None:
            _only_last_logits(model)
        settings = {"INFERENCE_NUM_THREADS": task.threads, "PERFORMANCE_HINT": "LATENCY"}
        self._compiled = core.compile_model(model, "CPU", settings)
        self._request = self._compiled.create_infer_request()

    def prefill(self, prompt: list[int]) -> float:
        self._request.reset_state()
        begun = time.perf_counter()
        self._read(np.array([prompt]), past=0)
        return time.perf_counter() - begun

    def decode(self, prompts: list[list[int]], new_tokens: int) -> float:
        self._request.reset_state()
        self._read(np.array(prompts), past=0)
        follow = np.array(self._task.prompts(len(prompts), new_tokens - 1, seed=3))
        begun = time.perf_counter()
        for step in range(new_tokens - 1):
            self._read(follow[:, step : step + 1], past=len(prompts[0]) + step)
        return time.perf_counter() - begun

    def nats(self, texts: list[list[int]]) -> float:
        nats = 0.0
        for text in texts:
            self._request.reset_state()
            nats += nats_of(text, self._read(np.array([text]), past=0)[0])
        return nats

    def extras(self, task: Task) -> dict[str, Any]:
        names = ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION", "DYNAMIC_QUANTIZATION_GROUP_SIZE")
        return {"precisions": {name: str(self._compiled.get_property(name)) for name in names}}

    def _read(self, ids_bt: npt.NDArray[Any], past: int) -> npt.NDArray[Any]:
        """Logits behind tokens (texts, tokens) that follow `past` others in each text."""
        texts, tokens = ids_bt.shape
        given = {
            "input_ids": ids_bt,
            "attention_mask": np.ones((texts, past + tokens), np.int64),
            "position_ids": np.tile(np.arange(past, past + tokens), (texts, 1)),
            "beam_idx": np.arange(texts, dtype=np.int32),
        }
        self._request.infer(given, share_inputs=True)
        return self._request.get_output_tensor(0).data


def _only_last_logits(model: Any) -> None:
    """Have the head of a graph see the last token of each text, in place."""
    head = model.get_results()[0].input_value(0).get_node()
    while head.get_type_name() != "MatMul":
        head = head.input_value(0).get_node()
    last, time_axis = opset13.constant(np.array([-1])), opset13.constant(np.array(1))
    head.input(0).replace_source_output(opset13.gather(head.input_value(0), last, time_axis).output(0))
    model.validate_nodes_and_infer_types()


def _export(folder: str, out: str, weights: str | None = None) -> None:
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    # Unless told otherwise, optimum takes 8 bits for large models.
    form: dict[str, Any] = {"load_in_8bit": False}
    if weights == "int4":
        # Where 128 does not divide a matrix: the largest power of two that does.
        groups: dict[str, Any] = {"group_size": 128, "group_size_fallback": "adjust"}
        form = {"quantization_config": OVWeightQuantizationConfig(bits=4, sym=True, **groups)}
    model = OVModelForCausalLM.from_pretrained(folder, export=True, compile=False, **form)
    model.save_pretrained(out)


if __name__ == "__main__":
    if sys.argv[1] == "--export":
        _export(*sys.argv[2:5])
    else:
        answer(OpenVino, IMPORTED)
