"""Hugging Face folders, in and out: `config.json` and `model.safetensors` with the names `transformers` uses.

Nothing in a folder is trusted: only safetensors are read, every tensor must be known, present and of the right shape,
every config key understood.
"""

import fnmatch
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from groundup.errors import UserError
from groundup.formats import quantized, rules
from groundup.formats.families import ALL_FAMILIES
from groundup.formats.family import Family
from groundup.formats.folder import CONFIG, GENERATION, INDEX, SHARDS, SINGLE, TOKENIZER_FILES, read_object
from groundup.formats.keys import Keys
from groundup.formats.tensor_files import FLOATS, SHARD_BYTES, TensorFiles, write_tensors
from groundup.model.build import AnyConfig, AnyModel, build
from groundup.model.config import EncoderDecoderConfig, ModelConfig, StackConfig
from groundup.model.language_model import LanguageModel
from groundup.model.stack import Stack
from groundup.quantize.convert import compute_alike, quantized_format
from groundup.storage import staged, write_json

FAMILIES: Mapping[str, Family[Any]] = {family.name: family for family in ALL_FAMILIES}
# Where each loaded model came from: there lie its tokenizer and its generation settings.
_FOLDERS: WeakKeyDictionary[nn.Module, Path] = WeakKeyDictionary()
# Keys that say how a model is trained, used or was saved, not what it computes.
COMMON_KEYS = (
    "_attn_implementation_autoset "
    "_name_or_path architectures auto_map bos_token_id chunk_size_feed_forward dtype eos_token_id id2label "
    "initializer_range is_decoder is_encoder_decoder label2id model_type output_attentions output_hidden_states "
    "output_router_logits pad_token_id problem_type return_dict tokenizer_class torch_dtype transformers_version "
    "use_cache"
).split()


def load_model(folder: Path, dtype: torch.dtype | None = None) -> AnyModel:
    """The model of a Hugging Face folder, on the CPU, in evaluation mode.

    dtype: of the weights; None keeps each tensor's own.
    Raises UserError, naming the file and the key or tensor, for anything missing, unknown or of the wrong shape.
    """
    family, config = read_config(folder)
    format = quantized.read_format(read_object(folder / CONFIG), folder)
    files = TensorFiles(folder, FLOATS if format is None else quantized.DTYPES)
    model = _outline(family.settle(config, files), files, folder, 8 if format is None else format.bits)
    if format is None:
        tensors = _read_tensors(folder, files, model, family, dtype)
    else:
        tensors = quantized.read_tensors(files, model, format, dtype)
    model.load_state_dict(tensors, strict=True, assign=True)
    _FOLDERS[model] = folder.absolute()
    return model.eval()


def load_language_model(folder: Path, dtype: torch.dtype | None = None) -> LanguageModel:
    """The same for uses that need a model of token sequences. Raises UserError for a folder of another kind too."""
    model = load_model(folder, dtype)
    if not isinstance(model, LanguageModel):
        raise UserError(f"{folder} holds a {model.config.family} model; this needs one of text alone, such as llama")
    return model


def load_decoder(folder: Path, dtype: torch.dtype | None = None) -> LanguageModel:
    """The same for uses that go on from a text. Raises UserError for an encoder or an encoder-decoder too."""
    model = load_model(folder, dtype)
    if isinstance(model, LanguageModel) and model.config.causal:
        return model
    raise UserError(
        f"{folder} holds a {model.config.family} model, which cannot go on from a text; sampling, chat and fine-tuning "
        "need a decoder, such as llama"
    )


def read_config(folder: Path) -> tuple[Family[Any], AnyConfig]:
    """What a folder's config.json says. Raises UserError, naming the key, for anything that is not understood."""
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is not a model folder: it has no {CONFIG}")
    keys = read_object(folder / CONFIG)
    quantized.read_format(keys, folder)
    family = _family(keys, folder)
    return family, _model_config(family, {name: one for name, one in keys.items() if name != quantized.KEY}, folder)


def save_model(
    model: AnyModel,
    folder: Path,
    bos_id: int | None = None,
    eos_ids: list[int] | None = None,
    pad_id: int | None = None,
) -> None:
    """Write `config.json`, `generation_config.json` and `model.safetensors` into an existing folder, then check them.

    eos_ids: tokens at which generation stops; a model that writes no text has none of the three.
    Raises UserError if the weights give logits that are not finite, and RuntimeError if the folder, read back, does not
    give equal ones: a bad export never passes as a good one.
    """
    _write_model(model, folder, {"bos_token_id": bos_id, "eos_token_id": eos_ids, "pad_token_id": pad_id}, SHARD_BYTES)


def save_folder(model: AnyModel, folder: Path, like: Path | None = None, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a whole model folder, or none of it; what else lies in `folder` stays.

    like: a model folder whose token ids, generation settings and tokenizer go along; None: the one that the model was
        loaded from. A model that came from nowhere gets none of these.
    shard_bytes: the most that one file of weights may hold.
    Raises as `save_model` does.
    """
    like = like or _FOLDERS.get(model)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; a model is saved as a folder")
    keys = {} if like is None else read_object(like / CONFIG)
    token_ids = {name: keys.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    with staged(folder, replaces=(SINGLE, INDEX, SHARDS)) as working:
        _write_model(model, working, token_ids, shard_bytes)
        for name in (GENERATION, *TOKENIZER_FILES):
            if like is not None and (like / name).is_file():
                shutil.copyfile(like / name, working / name)


def _write_model(model: AnyModel, folder: Path, token_ids: Mapping[str, Any], shard_bytes: int) -> None:
    family, format = FAMILIES[model.config.family], quantized_format(model)
    dtype = str(next((one.dtype for one in model.parameters()), torch.float32)).removeprefix("torch.")
    if not isinstance(model.config, ModelConfig | EncoderDecoderConfig):  # of these null says that there is none
        token_ids = {name: value for name, value in token_ids.items() if value is not None}
    keys = {"architectures": [family.architecture], "model_type": family.name, "dtype": dtype, **token_ids}
    keys |= {} if format is None else quantized.format_keys(format)
    write_json(folder / CONFIG, dict(sorted((keys | family.write(model.config)).items())))
    start = {"decoder_start_token_id": model.config.start_id} if isinstance(model.config, EncoderDecoderConfig) else {}
    if token_ids:
        write_json(folder / GENERATION, {**token_ids, **start})
    if format is None:
        ours = {name: parameter.detach() for name, parameter in model.named_parameters()}
        write_tensors(folder, rules.disk_tensors(_layouts(family, model)[0], ours), shard_bytes)
    else:
        write_tensors(folder, model.state_dict().items(), shard_bytes)
    _compare_outputs(model, load_model(folder))


def _layouts(family: Family[Any], model: AnyModel) -> list[list[rules.Rule]]:
    """The rules of this model's tensors for each layout of the family, its own first."""
    tables = (table(model.config) for table in (family.rules, *family.other_rules))
    return [rules.concrete(table, _shapes(model)) for table in tables]


def _disk_names(table: list[rules.Rule]) -> set[str]:
    return {name for rule in table for name in rule.disk}


def _shapes(model: AnyModel) -> dict[str, rules.Shape]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _family(keys: Mapping[str, Any], folder: Path) -> Family[Any]:
    name = str(keys.get("model_type"))
    if name not in FAMILIES:
        raise UserError(f"{folder}/config.json: `model_type` is {name!r}; known are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def _model_config(family: Family[Any], values: Mapping[str, Any], folder: Path) -> AnyConfig:
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


def _outline(config: AnyConfig, files: TensorFiles, folder: Path, bits: int = 8) -> AnyModel:
    """The model without memory for its weights.

    A config.json may ask for any size; one that the files cannot hold is refused before anything is made of it.
    bits: the fewest that a weight takes.
    """
    parts = [config] if isinstance(config, StackConfig) else vars(config).values()
    least = sum(part.matmul_parameters() for part in parts if isinstance(part, StackConfig))
    if least * bits // 8 > files.size_bytes:
        each = "one byte" if bits == 8 else f"{bits} bits"
        raise UserError(
            f"{folder}/{CONFIG} describes a model of at least {least:,} parameters, of which {files.path().name} with "
            f"its {files.size_bytes:,} bytes cannot hold {each} each"
        )
    try:
        with torch.device("meta"):
            return build(config)
    except (RuntimeError, OverflowError, TypeError):  # sizes that are no numbers of bytes any more
        raise UserError(f"{folder}/{CONFIG} describes a model larger than any machine can hold") from None


def _read_tensors(
    folder: Path, files: TensorFiles, model: AnyModel, family: Family[Any], dtype: torch.dtype | None
) -> dict[str, torch.Tensor]:
    """Our names → tensors of the folder, memory-mapped where they lie there as here; exactly those the model has."""
    layouts = _layouts(family, model)
    table = next((one for one in layouts if _disk_names(one) <= files.names()), layouts[0])
    known = _disk_names(table)
    if missing := sorted(known - files.names()):
        raise UserError(f"{files.path()}: tensor `{missing[0]}` is missing")
    copies = _copies(family, model, table)
    unknown = sorted(files.names() - known)
    for name in unknown:
        if name in copies and _are_equal(files.get(name), files.get(copies[name])):
            continue
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in family.ignored):
            raise UserError(f"{files.path(name)}: tensor `{name}` has no place in a {family.name} model of this config")
    try:
        return dict(rules.our_tensors(table, files.get, _shapes(model), files.read, dtype))
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from None


def _are_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _copies(family: Family[Any], model: AnyModel, table: list[rules.Rule]) -> dict[str, str]:
    """Names on disk of tensors that are tied, which some files hold nevertheless → those of what they must equal."""
    embedding = [rule.disk[0] for rule in table if rule.ours == ("embedding.weight",)]
    head = [rule.disk[0] for rule in family.rules(model.config) if rule.ours == ("head.weight",)]
    tied = isinstance(model.config, ModelConfig) and model.config.tied_head
    return dict(family.copies) | (dict(zip(head, embedding, strict=False)) if tied else {})


@torch.no_grad()
def _compare_outputs(model: AnyModel, loaded: AnyModel) -> None:
    """Both must have the same weights and give the same outputs, in the weights' own type, for a fixed input."""
    inputs = model.example()
    compute_alike(loaded, model)
    stacks = [module for module in model.modules() if isinstance(module, Stack)]
    compute_dtypes = [stack.compute_dtype for stack in stacks]
    for stack in stacks:
        stack.compute_dtype = None
    expected = _outputs(model, inputs)
    for stack, dtype in zip(stacks, compute_dtypes, strict=True):
        stack.compute_dtype = dtype
    if not all(torch.isfinite(one).all() for one in expected):
        raise UserError("the weights give logits that are not finite; if training made them, lower its learning rates")
    if not _is_same(model, loaded) or not all(map(_alike, expected, _outputs(loaded.to(model.device), inputs))):
        raise RuntimeError("the saved model folder does not give the outputs of the model it was saved from")


def _outputs(model: AnyModel, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """What a model gives, on the CPU: its logits, or what there is beside them too."""
    given = model(*(tensor.to(model.device) for tensor in inputs))
    return tuple(one.cpu() for one in ((given,) if isinstance(given, torch.Tensor) else given))


def _is_same(model: AnyModel, loaded: AnyModel) -> bool:
    """Whether configuration and tensors are equal, these to the bit."""
    pairs = zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    return model.config == loaded.config and all(torch.equal(one.cpu(), other) for one, other in pairs)


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether outputs are equal but for rounding: by how a matrix lies in memory its products are summed otherwise."""
    rounding = 100 * torch.finfo(one.dtype).eps * float(one.abs().max())
    return torch.allclose(one, other, rtol=0, atol=rounding)
