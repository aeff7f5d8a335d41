"""Hugging Face folders, in and out: `config.json` and `model.safetensors` with the names `transformers` uses.

Nothing in a folder is trusted: only safetensors are read, every tensor must be known, present and of the right shape,
every config key understood.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from groundup.errors import UserError
from groundup.formats.families.groundup import GROUNDUP
from groundup.formats.families.llama import LLAMA
from groundup.formats.families.nanochat import NANOCHAT
from groundup.formats.family import Family, check_values
from groundup.model.config import ModelConfig
from groundup.model.transformer import Decoder
from groundup.storage import write_json

FAMILIES: Mapping[str, Family] = {family.name: family for family in (LLAMA, NANOCHAT, GROUNDUP)}
# Keys that say how a model is used or was saved, not what it computes.
COMMON_KEYS = frozenset(
    "_name_or_path architectures bos_token_id chunk_size_feed_forward dtype eos_token_id id2label initializer_range "
    "is_encoder_decoder label2id model_type output_attentions output_hidden_states pad_token_id problem_type "
    "return_dict torch_dtype transformers_version use_cache".split()
)


def load_model(folder: Path, dtype: torch.dtype | None = None) -> Decoder:
    """The model of a Hugging Face folder, on the CPU, in evaluation mode.

    dtype: of the weights; None keeps each tensor's own.
    Raises UserError, naming the file and the key or tensor, for anything missing, unknown or of the wrong shape.
    """
    keys = _read_config(folder)
    family = _family(keys, folder)
    config = _model_config(family, keys, folder)
    with torch.device("meta"):
        model = Decoder(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    tensors = _read_tensors(folder / "model.safetensors", shapes, family)
    if dtype is not None:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    model.load_state_dict(tensors, strict=True, assign=True)
    return model.eval()


def save_model(model: Decoder, folder: Path, bos_id: int, eos_ids: list[int], pad_id: int) -> None:
    """Write `config.json`, `generation_config.json` and `model.safetensors` into an existing folder, then check them.

    eos_ids: tokens at which generation stops.
    Raises UserError if the weights give logits that are not finite, and RuntimeError if the folder, read back, does not
    give equal ones: a bad export never passes as a good one.
    """
    family = FAMILIES[model.config.family]
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    token_ids = {"bos_token_id": bos_id, "eos_token_id": eos_ids, "pad_token_id": pad_id}
    keys = {"architectures": [family.architecture], "model_type": family.name, "dtype": dtype, **token_ids}
    write_json(folder / "config.json", dict(sorted((keys | family.to_keys(model.config)).items())))
    write_json(folder / "generation_config.json", token_ids)
    tensors = {
        disk_name(family, name): parameter.detach().contiguous().cpu() for name, parameter in model.named_parameters()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # the library leaves it to its owner alone
    _compare_logits(model, load_model(folder))


def disk_name(family: Family, name: str) -> str:
    """The name on disk of our parameter `name`."""
    numbers = re.findall(r"\.(\d+)\.", name)
    pattern = re.sub(r"\.\d+\.", ".*.", name)
    return family.tensors[pattern].replace("*", numbers[0]) if numbers else family.tensors[pattern]


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} is not a model folder: it has no config.json") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(keys, dict):
        raise UserError(f"{path} must hold a JSON object")
    return keys


def _family(keys: Mapping[str, Any], folder: Path) -> Family:
    name = str(keys.get("model_type"))
    if name not in FAMILIES:
        raise UserError(f"{folder}/config.json: `model_type` is {name!r}; known are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def _model_config(family: Family, keys: Mapping[str, Any], folder: Path) -> ModelConfig:
    unknown = sorted(set(keys) - family.known_keys - COMMON_KEYS)
    if unknown:
        raise UserError(f"{folder}/config.json: `{unknown[0]}` is not a key that {family.name} has here")
    try:
        check_values(keys)
        return family.from_keys(keys)
    except KeyError as missing:
        raise UserError(f"{folder}/config.json: key `{missing.args[0]}` is missing") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder}/config.json: {error}") from None


def _read_tensors(path: Path, shapes: Mapping[str, tuple[int, ...]], family: Family) -> dict[str, torch.Tensor]:
    """Our names → tensors of `path`, memory-mapped; exactly those of `shapes`."""
    names = {disk_name(family, name): name for name in shapes}
    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            on_disk = set(file.keys())
            for missing in sorted(names.keys() - on_disk):
                raise UserError(f"{path}: tensor `{missing}` is missing")
            for unknown in sorted(on_disk - names.keys()):
                raise UserError(f"{path}: tensor `{unknown}` has no place in a {family.name} model of this config")
            for disk, name in names.items():
                tensors[name] = file.get_tensor(disk)
                if tuple(tensors[name].shape) != shapes[name]:
                    shape = tuple(tensors[name].shape)
                    raise UserError(f"{path}: tensor `{disk}` has shape {shape}, config.json says {shapes[name]}")
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no model.safetensors") from None
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from None
    return tensors


@torch.no_grad()
def _compare_logits(model: Decoder, loaded: Decoder) -> None:
    """Both must give the same logits, in the weights' own type, on a fixed run of tokens."""
    length = min(16, model.config.max_positions)
    input_ids = (torch.arange(length)[None] * 7919) % model.config.vocab_size
    compute_dtype, model.compute_dtype = model.compute_dtype, None
    expected = model(input_ids.to(model.device)).cpu()
    model.compute_dtype = compute_dtype
    if not torch.isfinite(expected).all():
        raise UserError("training ended in weights that are not finite; lower the learning rates and run again")
    if not torch.equal(expected, loaded(input_ids)):
        raise RuntimeError("the saved model folder does not give the logits of the model it was saved from")
