"""Hugging Face folders, in and out: `config.json` and `model.safetensors` with the names `transformers` uses.

Nothing in a folder is trusted: only safetensors are read, every tensor must be known, present and of the right shape,
every config key understood.
"""

import fnmatch
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from groundup.errors import UserError
from groundup.formats import rules
from groundup.formats.families import ALL_FAMILIES
from groundup.formats.family import Family
from groundup.formats.folder import CONFIG, GENERATION, INDEX, SHARDS, SINGLE, TOKENIZER_FILES, read_object
from groundup.formats.keys import Keys
from groundup.formats.tensor_files import SHARD_BYTES, TensorFiles, write_tensors
from groundup.model.config import ModelConfig
from groundup.model.transformer import Decoder
from groundup.storage import staged, write_json

FAMILIES: Mapping[str, Family] = {family.name: family for family in ALL_FAMILIES}
# Keys that say how a model is trained, used or was saved, not what it computes.
COMMON_KEYS = (
    "_name_or_path architectures auto_map bos_token_id chunk_size_feed_forward dtype eos_token_id id2label "
    "initializer_range is_decoder is_encoder_decoder label2id model_type output_attentions output_hidden_states "
    "output_router_logits pad_token_id problem_type return_dict tokenizer_class torch_dtype transformers_version "
    "use_cache"
).split()


def load_model(folder: Path, dtype: torch.dtype | None = None) -> Decoder:
    """The model of a Hugging Face folder, on the CPU, in evaluation mode.

    dtype: of the weights; None keeps each tensor's own.
    Raises UserError, naming the file and the key or tensor, for anything missing, unknown or of the wrong shape.
    """
    family, config = read_config(folder)
    files = TensorFiles(folder)
    _require_as_many_bytes(config, files, folder)
    with torch.device("meta"):
        model = Decoder(config)
    tensors = _read_tensors(folder, files, model, family, dtype)
    model.load_state_dict(tensors, strict=True, assign=True)
    model.folder = folder.absolute()
    return model.eval()


def read_config(folder: Path) -> tuple[Family, ModelConfig]:
    """What a folder's config.json says. Raises UserError, naming the key, for anything that is not understood."""
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is not a model folder: it has no {CONFIG}")
    keys = read_object(folder / CONFIG)
    family = _family(keys, folder)
    return family, _model_config(family, keys, folder)


def save_model(model: Decoder, folder: Path, bos_id: int, eos_ids: list[int], pad_id: int) -> None:
    """Write `config.json`, `generation_config.json` and the weights into an existing folder, then check them.

    eos_ids: tokens at which generation stops.
    Raises UserError if the weights give logits that are not finite, and RuntimeError if the folder, read back, does not
    give equal ones: a bad export never passes as a good one.
    """
    token_ids = {"bos_token_id": bos_id, "eos_token_id": eos_ids, "pad_token_id": pad_id}
    write_json(folder / GENERATION, token_ids)
    _write_model(model, folder, token_ids, SHARD_BYTES)


def save_folder(model: Decoder, folder: Path, like: Path | None = None, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a whole model folder, or none of it; what else lies in `folder` stays.

    like: a model folder whose token ids, generation settings and tokenizer go along; None: the one that the model was
        loaded from. A model that came from nowhere gets none of these.
    shard_bytes: the most that one file of weights may hold.
    Raises as `save_model` does.
    """
    like = like or model.folder
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; a model is saved as a folder")
    keys = {} if like is None else read_object(like / CONFIG)
    token_ids = {name: keys.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    with staged(folder, replaces=(SINGLE, INDEX, SHARDS)) as working:
        write_json(working / GENERATION, token_ids)
        for name in (GENERATION, *TOKENIZER_FILES):
            if like is not None and (like / name).is_file():
                shutil.copyfile(like / name, working / name)
        _write_model(model, working, token_ids, shard_bytes)


def _write_model(model: Decoder, folder: Path, token_ids: Mapping[str, Any], shard_bytes: int) -> None:
    family = FAMILIES[model.config.family]
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    keys = {"architectures": [family.architecture], "model_type": family.name, "dtype": dtype, **token_ids}
    write_json(folder / CONFIG, dict(sorted((keys | family.write(model.config)).items())))
    ours = {name: parameter.detach() for name, parameter in model.named_parameters()}
    write_tensors(folder, rules.disk_tensors(_layouts(family, model)[0], ours), shard_bytes)
    _compare_logits(model, load_model(folder))


def _layouts(family: Family, model: Decoder) -> list[list[rules.Rule]]:
    """The rules of this model's tensors for each layout of the family, its own first."""
    tables = (table(model.config) for table in (family.rules, *family.other_rules))
    return [rules.concrete(table, _shapes(model), len(model.config.layers)) for table in tables]


def _disk_names(table: list[rules.Rule]) -> set[str]:
    return {name for rule in table for name in rule.disk}


def _shapes(model: Decoder) -> dict[str, rules.Shape]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _family(keys: Mapping[str, Any], folder: Path) -> Family:
    name = str(keys.get("model_type"))
    if name not in FAMILIES:
        raise UserError(f"{folder}/config.json: `model_type` is {name!r}; known are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def _model_config(family: Family, values: Mapping[str, Any], folder: Path) -> ModelConfig:
    keys = Keys(values)
    keys.without_effect(*COMMON_KEYS)
    try:
        config = family.read(keys)
    except KeyError as missing:
        raise UserError(f"{folder}/config.json: key `{missing.args[0]}` is missing") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder}/config.json: {error}") from None
    if unread := keys.unread():
        raise UserError(f"{folder}/config.json: `{unread[0]}` is not a key that {family.name} has here")
    return config


def _require_as_many_bytes(config: ModelConfig, files: TensorFiles, folder: Path) -> None:
    """A config.json may ask for a model of any size; only one that the files can hold is built."""
    if config.parameters() > files.size_bytes:
        raise UserError(
            f"{folder}/config.json describes a model of {config.parameters():,} parameters, "
            f"of which {files.path().name} with its {files.size_bytes:,} bytes cannot hold one byte each"
        )


def _read_tensors(
    folder: Path, files: TensorFiles, model: Decoder, family: Family, dtype: torch.dtype | None
) -> dict[str, torch.Tensor]:
    """Our names → tensors of the folder, memory-mapped where they lie there as here; exactly those the model has."""
    layouts = _layouts(family, model)
    table = next((one for one in layouts if _disk_names(one) <= files.names()), layouts[0])
    known = _disk_names(table)
    if missing := sorted(known - files.names()):
        raise UserError(f"{files.path()}: tensor `{missing[0]}` is missing")
    copy = _copy_of_embedding(family, model, table)
    unknown = sorted(files.names() - known)
    for name in unknown:
        if name in copy and _are_equal(files.get(name), files.get(copy[name])):
            continue
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in family.ignored):
            raise UserError(f"{files.path(name)}: tensor `{name}` has no place in a {family.name} model of this config")
    try:
        return dict(rules.our_tensors(table, files.get, _shapes(model), files.read, dtype))
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from None


def _are_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _copy_of_embedding(family: Family, model: Decoder, table: list[rules.Rule]) -> dict[str, str]:
    """The name on disk of a head that is tied, which some files hold nevertheless → that of the embedding."""
    embedding = [rule.disk[0] for rule in table if rule.ours == ("embedding.weight",)]
    head = [rule.disk[0] for rule in family.rules(model.config) if rule.ours == ("head.weight",)]
    return dict(zip(head, embedding, strict=False)) if model.config.tied_head else {}


@torch.no_grad()
def _compare_logits(model: Decoder, loaded: Decoder) -> None:
    """Both must give the same logits, in the weights' own type, on a fixed run of tokens."""
    length = min(16, model.config.max_positions)
    input_ids = (torch.arange(length)[None] * 7919) % model.config.vocab_size
    compute_dtype, model.compute_dtype = model.compute_dtype, None
    expected = model(input_ids.to(model.device)).cpu()
    model.compute_dtype = compute_dtype
    if not torch.isfinite(expected).all():
        raise UserError("the weights give logits that are not finite; if training made them, lower its learning rates")
    if not torch.equal(expected, loaded.to(model.device)(input_ids.to(model.device)).cpu()):
        raise RuntimeError("the saved model folder does not give the logits of the model it was saved from")
