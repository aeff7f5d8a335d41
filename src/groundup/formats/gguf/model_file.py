"""A model as one GGUF file, out and in: what llama.cpp runs.

Nothing leaves that llama.cpp would compute otherwise, or not at all: the keys and tensors of a file to be written are
read as those of any other file, and must give the model's own configuration.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groundup.errors import UserError
from groundup.formats import rules
from groundup.formats.gguf.architectures import BY_FAMILY, BY_NAME, Architecture
from groundup.formats.gguf.blocks import F32, WRITTEN
from groundup.formats.gguf.container import Entry, GgufFile, Value, refusal, write_gguf
from groundup.formats.gguf.encoders import without_head
from groundup.formats.gguf.layout import format_of
from groundup.formats.gguf.model_keys import Tensors
from groundup.formats.gguf.ropes import frequency_factors
from groundup.formats.gguf.vocabulary import vocabulary_of_folder
from groundup.formats.keys import Keys
from groundup.model.build import AnyModel
from groundup.model.config import ModelConfig
from groundup.model.language_model import LanguageModel
from groundup.quantize.convert import require_floating
from groundup.storage import open_atomically

FREQUENCIES = "rope_freqs.weight"
TOKEN_TYPE_COUNT = "tokenizer.ggml.token_type_count"
LONG_KEYS = ("context_length", "sliding_window")  # may be larger than any width


def load_gguf(path: Path, dtype: torch.dtype | None = None) -> LanguageModel:
    """The model of a GGUF file, on the CPU, in evaluation mode.

    dtype: of the weights; None keeps each tensor's own, and float32 for those that are quantized.
    Raises UserError, naming the file and the key or tensor, for anything missing, unknown, damaged or of wrong shape.
    """
    file = GgufFile(path)
    architecture = _architecture_of(file)
    config = _read_config(file, architecture)
    model = _blank(config)
    shapes = _shapes(model)
    table = _table(architecture, config, shapes)
    known = {name for rule in table for name in rule.disk}
    found = set(file.tensors) - ({FREQUENCIES} if "llama" in architecture.families else set())
    for name in sorted(known - found):
        raise refusal(path, f"tensor `{name}` is missing")
    for name in sorted(found - known):
        raise refusal(path, f"tensor `{name}` has no place in a {architecture.name} model of these keys")
    try:
        tensors = rules.our_tensors(table, file.get, shapes)
        weights = {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in tensors}
    except ValueError as error:
        raise refusal(path, str(error)) from None
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()


def save_gguf(model: AnyModel, tokenizer: Path, path: Path, weights: str = "f16") -> None:
    """Write a model and its tokenizer as a GGUF file, tensor by tensor; the file appears whole or not at all.

    Of an encoder it holds all but the head that guesses masked tokens, which llama.cpp does not have.

    tokenizer: folder with `tokenizer.json` and what stands beside it; weights: f32, f16, bf16, q8_0 or q4_0.
    Raises UserError, naming it, for a family, trait or tokenizer that llama.cpp does not know, and RuntimeError if the
    file, read back, does not hold the model's weights.
    """
    require_floating(model, "exported to GGUF")
    architecture, config = _written_as(model)
    if weights not in WRITTEN:
        raise UserError(f"a GGUF file is written as {', '.join(WRITTEN)}, not {weights!r}")
    shapes = _shapes(_blank(config))
    ours = {name: one.detach() for name, one in model.named_parameters() if name in shapes}
    keys, factors = architecture.write(config), frequency_factors(config)
    table = _table(architecture, config, shapes)
    extra = {FREQUENCIES: factors} if factors is not None and "llama" in architecture.families else {}
    entries = list(_entries(table, ours, extra, weights, config.tied_head))
    stored = Tensors({entry.name: entry.shape for entry in entries}, extra.get(FREQUENCIES))
    _refuse_other_traits(architecture, keys, stored, config)
    metadata: dict[str, Value] = {
        "general.architecture": architecture.name,
        "general.type": "model",
        "general.name": tokenizer.resolve().name,
        "general.file_type": WRITTEN[weights].file_type,
        "general.quantization_version": 2,
        **{f"{architecture.name}.{key}": value for key, value in keys.items()},
        **vocabulary_of_folder(tokenizer, config.vocab_size),
        # llama.cpp wants at least one, and a table of as many rows if there is a table.
        **({TOKEN_TYPE_COUNT: max(config.token_types, 1)} if architecture.encodes else {}),
    }
    with open_atomically(path) as file:
        write_gguf(file, metadata, entries, chain(extra.items(), rules.disk_tensors(table, ours)))
        file.flush()
        _compare_weights(ours, Path(file.name), {entry.name: entry.format.error for entry in entries}, table)


def _written_as(model: AnyModel) -> tuple[Architecture, ModelConfig]:
    """What a model is for llama.cpp, and the configuration of what goes into the file."""
    architecture = BY_FAMILY.get(model.config.family)
    if architecture is None:
        known = ", ".join(BY_FAMILY)
        raise UserError(f"GGUF has no place for a {model.config.family} model: of our families llama.cpp runs {known}")
    if not isinstance(model, LanguageModel):
        raise UserError(f"GGUF has no place for a {model.config.family} classifier: its encoder alone would be left")
    return architecture, without_head(model.config) if architecture.encodes else model.config


def _architecture_of(file: GgufFile) -> Architecture:
    kind, name = file.metadata.get("general.type", "model"), file.metadata.get("general.architecture")
    if kind != "model" or file.metadata.get("split.count", 1) not in (0, 1):
        what = "one part of several" if kind == "model" else f"of the type {kind!r}"
        raise refusal(file.path, f"it is {what}; only whole models in one file are read")
    if not isinstance(name, str) or name not in BY_NAME:
        raise refusal(file.path, f"`general.architecture` is {name!r}; known are {', '.join(BY_NAME)}")
    return BY_NAME[name]


def _read_config(file: GgufFile, architecture: Architecture) -> ModelConfig:
    prefix = f"{architecture.name}."
    values = {key.removeprefix(prefix): one for key, one in file.metadata.items() if key.startswith(prefix)}
    shapes = {name: place.shape for name, place in file.tensors.items()}
    try:
        for key, value in values.items():
            # So that no product of sizes, however hostile, leaves the range of 64 bits.
            if isinstance(value, int) and value > (2**31 if key.endswith(LONG_KEYS) else 2**20):
                raise ValueError(f"`{key}` is {value}, more than any model has")
        factors = file.get(FREQUENCIES).view(-1) if FREQUENCIES in file.tensors else None
        keys = Keys(values)
        config = architecture.read(keys, Tensors(shapes, factors))
    except KeyError as missing:
        raise refusal(file.path, f"key `{prefix}{missing.args[0]}` is missing") from None
    except (ValueError, TypeError) as error:
        raise refusal(file.path, str(error)) from None
    if unread := keys.unread():
        raise refusal(file.path, f"`{prefix}{unread[0]}` is not a key that {architecture.name} has here")
    return config


def _refuse_other_traits(
    architecture: Architecture, keys: Mapping[str, Any], tensors: Tensors, config: ModelConfig
) -> None:
    """Raise UserError, naming the first, for a trait that is not what llama.cpp computes for these keys."""
    try:
        found = architecture.read(Keys(keys), tensors)
    except ValueError as error:
        raise UserError(f"this {config.family} model has no place in GGUF: {error}") from None
    wanted = replace(config, family=found.family)
    other = _difference(_without_idle_windows(wanted), _without_idle_windows(found), "")
    if other is not None:
        trait, own, theirs = other
        raise UserError(
            f"this {config.family} model has no place in GGUF: its `{trait}` is {own!r}, "
            f"llama.cpp's {architecture.name} can only have {theirs!r}"
        )


def _without_idle_windows(config: ModelConfig) -> ModelConfig:
    """Without the windows that reach over the longest text."""

    def seen(window: int | None) -> int | None:
        return None if window is None or window >= config.max_positions else window

    mixers = (replace(layer.attention, window=seen(layer.attention.window)) for layer in config.layers)
    layers = (replace(layer, mixer=mixer) for layer, mixer in zip(config.layers, mixers, strict=True))
    return replace(config, layers=tuple(layers))


def _difference(own: Any, other: Any, path: str) -> tuple[str, Any, Any] | None:
    """The first place where two configurations differ, and what stands there; numbers are equal to six digits."""
    if is_dataclass(own) and type(own) is type(other):
        names = (field.name for field in fields(own))
        pairs = [(f"{path}.{name}".lstrip("."), getattr(own, name), getattr(other, name)) for name in names]
    elif isinstance(own, tuple) and isinstance(other, tuple) and len(own) == len(other):
        pairs = [(f"{path}[{index}]", *pair) for index, pair in enumerate(zip(own, other, strict=True))]
    elif isinstance(own, float) and isinstance(other, float) and math.isclose(own, other, rel_tol=1e-6):
        return None
    else:
        return None if own == other else (path, own, other)
    return next((found for name, one, two in pairs if (found := _difference(one, two, name)) is not None), None)


def _table(architecture: Architecture, config: ModelConfig, shapes: Mapping[str, rules.Shape]) -> list[rules.Rule]:
    return rules.concrete(architecture.rules(config), shapes)


def _shapes(model: LanguageModel) -> dict[str, rules.Shape]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _blank(config: ModelConfig) -> LanguageModel:
    """A model without memory for its weights."""
    with torch.device("meta"):
        return LanguageModel(config)


def _entries(
    table: Sequence[rules.Rule], ours: Mapping[str, Tensor], extra: Mapping[str, Tensor], weights: str, tied_head: bool
) -> Iterator[Entry]:
    """What will be in the file, found out without touching a weight."""
    for name, tensor in extra.items():
        yield Entry(name, tuple(tensor.shape), F32)
    blank = {name: tensor.to("meta") for name, tensor in ours.items()}
    for name, tensor in rules.disk_tensors(table, blank):
        shape = tuple(tensor.shape)
        yield Entry(name, shape, format_of(name, shape, WRITTEN[weights], tied_head))


def _compare_weights(
    ours: Mapping[str, Tensor], path: Path, errors: Mapping[str, float], table: Sequence[rules.Rule]
) -> None:
    """Each tensor of the file must be ours, but for what its format may lose."""
    file = GgufFile(path)
    for rule in table:
        wanted = [ours[name].cpu() for name in rule.ours]
        stored = rule.operation.from_disk([file.get(name) for name in rule.disk], [tuple(one.shape) for one in wanted])
        error = max(errors[name] for name in rule.disk)
        for name, one, other in zip(rule.ours, wanted, stored, strict=True):
            lost = (one.float() - other.float()).norm()
            # Scales in half precision are no finer than 6e-8, and stand for up to 127 steps.
            if not lost <= error * one.float().norm() + 4e-6 * one.numel() ** 0.5:
                raise RuntimeError(f"the GGUF file does not hold the model's `{name}`")
