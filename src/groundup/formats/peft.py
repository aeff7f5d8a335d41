"""LoRA adapters as PEFT saves them: `adapter_config.json` and `adapter_model.safetensors`.

They name the layers of the class that `transformers` has for a family, which are those of the family's rules; one for
the class without a head leaves out what stands before them. A layer of theirs that is several of ours, such as GPT-2's
`c_attn`, has one matrix A for all of them, and rows of B for each.
Nothing in a folder is trusted: every key and tensor must be understood, nothing is unpickled.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from groundup.errors import UserError
from groundup.formats import rules
from groundup.formats.folder import read_object
from groundup.formats.huggingface import FAMILIES
from groundup.formats.keys import Keys
from groundup.formats.rules import Joined, JoinedByGroup, Rule, Same, Shape
from groundup.formats.tensor_files import read_tensors
from groundup.model.config import ModelConfig
from groundup.model.language_model import LanguageModel
from groundup.model.lora import LowRank, LowRankTable
from groundup.model.parts import Linear

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# Said of how it was trained, where it came from, and which layers were chosen: the tensors say the same.
WITHOUT_EFFECT = (
    "auto_mapping base_model_name_or_path eva_config exclude_modules fan_in_fan_out inference_mode layers_pattern "
    "layers_to_transform loftq_config lora_dropout megatron_core peft_version qalora_group_size revision task_type"
).split()
# Ours that are more than layers, and what changes of the second are called.
TABLE, HEAD = "embedding.weight", "head.weight"
CALLED = {"head": "head_product"}
# What a tensor of a file is: one of an adapter, or what PEFT saves beside it of an embedding or head that it changes.
CHANGE = re.compile(re.escape(PREFIX) + r"(.+)\.(?:lora_[AB]\.weight|lora_embedding_[AB])")
UNCHANGED = re.compile(re.escape(PREFIX) + r"(.+)\.base_layer\.(weight|bias)")
# Variants that compute something else, or change what is no linear layer.
UNSUPPORTED = (
    "alora_invocation_tokens arrow_config corda_config kasa_config layer_replication lora_bias lora_ga_config "
    "megatron_config modules_to_save monteclora_config trainable_token_indices use_bdlora use_dora use_qalora "
    "velora_config"
).split()
WITHOUT_EXPERTS = "adapters here change layers that every token passes through, no matrices of experts"
# Beginnings that leave the model's own weights as they are; PiSSA, OLoRA, CorDA and LoftQ change them.
BEGINNINGS = (True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class _Settings:
    """What a config says. ranks, alphas: for modules of these names, other than those of all.

    targets: names of the modules that were chosen, None where they are described otherwise.
    tied: where the head is the embedding, an adapter of the latter is the head's too; the file then has it twice.
    """

    rank: int
    alpha: float
    by_root: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    targets: Sequence[str] | None
    tied: bool

    def rank_of(self, module: str) -> int:
        return next((rank for name, rank in self.ranks.items() if _is_called(module, name)), self.rank)

    def scale_of(self, module: str) -> float:
        """alpha / rank (Hu et al. 2021) or, rank-stabilised, alpha / √rank (Kalajdzievski 2023)."""
        alpha = next((alpha for name, alpha in self.alphas.items() if _is_called(module, name)), self.alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.by_root else alpha / rank


class _Place(NamedTuple):
    """Where the matrix of a module lies here: the rule that names it, and the shapes of ours."""

    rule: Rule
    shapes: list[Shape]

    @property
    def is_table(self) -> bool:
        """Whether rows of it are looked up, so that an adapter's first matrix is a table too."""
        return self.rule.ours == (TABLE,)

    @property
    def is_head(self) -> bool:
        return self.rule.ours == (HEAD,)


def read_adapter(
    folder: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device | None = None
) -> dict[str, LowRank | LowRankTable]:
    """What an adapter adds to a model's linear layers, embedding and head, by their names in `Adapter.changes`.

    Of a tied embedding an adapter changes what it names: what is looked up, or the head. What PEFT saves of the model
    itself beside an adapter of these is not read: it is that of the model that the adapter is for.

    config: of the model that it is for. dtype: of the result.
    Raises UserError, naming the file and the key or tensor, for what is missing, unknown or of the wrong shape.
    """
    settings = _read_settings(folder / CONFIG)
    path = folder / WEIGHTS
    found = read_tensors(path)
    modules, places = _modules(path, found), _places(config)
    if settings.targets is not None:
        heads = {module for module, place in places.items() if place.is_head} if settings.tied else {}
        _compare_with_targets(path, [module for module in modules if module not in heads], settings.targets)
    _pass_over_unchanged(path, found, modules, places)
    changes: dict[str, LowRank | LowRankTable] = {}
    for module in modules:
        if module not in places:
            raise UserError(f"{path} changes `{module}`, {_why_not(module, config)}")
        down_ri, up_or = _pair(path, found, module, places[module], settings.rank_of(module))
        scaled_or = settings.scale_of(module) * up_or.to(torch.promote_types(up_or.dtype, torch.float32))
        for ours, rows_or in _split(places[module], scaled_or):
            kind, name = LowRankTable if places[module].is_table else LowRank, CALLED.get(ours, ours)
            if name in changes:
                raise UserError(f"{path} changes `{module}` twice, under two names")
            changes[name] = kind(down_ri.to(device, dtype), rows_or.to(device, dtype))
    return changes


def _read_settings(path: Path) -> _Settings:
    values = read_object(path)
    keys = Keys(values)
    keys.without_effect(*WITHOUT_EFFECT, "init_lora_weights")
    try:
        keys.choice("peft_type", among={"LORA": "LORA"})
        keys.off(*UNSUPPORTED)
        if parameters := keys.texts("target_parameters"):
            raise ValueError(f"`target_parameters` is {parameters}; {WITHOUT_EXPERTS}")
        keys.fixed(bias="none")
        if (beginning := values.get("init_lora_weights", True)) not in BEGINNINGS:
            raise ValueError(
                f"`init_lora_weights` is {beginning!r}, which changes the model's own weights; save the adapter with "
                "`path_initial_model_for_weight_conversion`, which makes it one that does not"
            )
        settings = _Settings(
            rank=keys.size("r"),
            alpha=keys.positive("lora_alpha"),
            by_root=keys.flag("use_rslora", default=False),
            ranks=_by_name(keys, "rank_pattern"),
            alphas=_by_name(keys, "alpha_pattern"),
            targets=_targets(keys, values),
            tied=keys.flag("ensure_weight_tying", default=False),
        )
    except KeyError as missing:
        raise UserError(f"{path}: key `{missing.args[0]}` is missing") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if unread := keys.unread():
        raise UserError(f"{path}: `{unread[0]}` is not a key that an adapter has here")
    return settings


def _by_name(keys: Keys, name: str) -> dict[str, Any]:
    """Positive numbers for modules of some names. PEFT takes a name for a regular expression; here it is plain."""
    numbers = keys.mapping(name) or {}
    for module in numbers:
        if not re.fullmatch(r"[\w.]+", module):
            raise ValueError(f"`{name}` has {module!r}; only plain names are supported, no regular expressions")
        Keys(numbers, f"{name}.").positive(module)
    return numbers


def _targets(keys: Keys, values: Mapping[str, Any]) -> list[str] | None:
    if isinstance(values.get("target_modules"), str):  # a description, in place of names
        keys.without_effect("target_modules")
        return None
    return keys.texts("target_modules")


def _modules(path: Path, names: Iterable[str]) -> list[str]:
    """The modules that these tensors change."""
    modules: dict[str, None] = {}
    for name in sorted(names):
        if change := CHANGE.fullmatch(name):
            modules[change[1]] = None
        elif not UNCHANGED.fullmatch(name):
            raise UserError(f"{path}: tensor `{name}` is not called `{PREFIX}….lora_A.weight` or `….lora_B.weight`")
    if not modules:
        raise UserError(f"{path} holds no tensors")
    return list(modules)


def _why_not(module: str, config: ModelConfig) -> str:
    """Why a module has no place here."""
    if ".experts." in module:
        return f"a matrix of an expert: {WITHOUT_EXPERTS}"
    return f"which is no linear layer, embedding or head of a {config.family} model of this config that can be changed"


def _pass_over_unchanged(
    path: Path, found: Mapping[str, Tensor], modules: Sequence[str], places: Mapping[str, _Place]
) -> None:
    """That what is not read belongs to the embedding and the head that are changed, as large as they are here."""
    for name, tensor in found.items():
        match = UNCHANGED.fullmatch(name)
        if match is None:
            continue
        module, part = match.groups()
        place = places.get(module) if module in modules else None
        if place is None or not (place.is_table or place.is_head):
            raise UserError(f"{path}: tensor `{name}` belongs to no embedding or head that the adapter changes")
        expected = place.shapes[0] if part == "weight" else place.shapes[0][:1]
        if tensor.shape != expected:
            raise UserError(f"{path}: tensor `{name}` has shape {tuple(tensor.shape)}, not {expected}")


def _compare_with_targets(path: Path, modules: Sequence[str], targets: Sequence[str]) -> None:
    for module in modules:
        if not any(_is_called(module, target) for target in targets):
            raise UserError(f"{path} changes `{module}`, which `target_modules` in {CONFIG} does not name")
    for target in targets:
        if not any(_is_called(module, target) for module in modules):
            raise UserError(f"{path} has no tensors for `{target}`, which `target_modules` in {CONFIG} names")


def _is_called(module: str, name: str) -> bool:
    return f".{module}".endswith(f".{name}")


def _places(config: ModelConfig) -> dict[str, _Place]:
    """The modules that an adapter can change, by their names there.

    A head that is the embedding has a name of its own there, that of one which is not. Where induction reads the head
    beside the product with it, it cannot be changed.
    """
    family, untied = FAMILIES[config.family], replace(config, tied_head=False)
    if any(HEAD in rule.ours for rule in family.rules(untied)):
        config = untied
    with torch.device("meta"):
        outline = LanguageModel(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in outline.named_parameters()}
    changeable = {
        f"{name}.weight"
        for name, module in outline.named_modules()
        if isinstance(module, Linear) and (module is not outline.head or config.induction is None)
    }
    changeable.add(TABLE)
    layouts = [rules.concrete(table(config), shapes) for table in (family.rules, *family.other_rules)]
    places = {
        rule.disk[0].removesuffix(".weight"): _Place(rule, [shapes[name] for name in rule.ours])
        for layout in layouts
        for rule in layout
        if changeable.issuperset(rule.ours) and isinstance(rule.operation, Same | Joined | JoinedByGroup)
    }
    # The class without a head has no name before those of its parts.
    body = next(module for module, place in places.items() if place.is_table).partition(".")[0] + "."
    return {module.removeprefix(body): place for module, place in places.items()} | places


def _pair(path: Path, found: Mapping[str, Tensor], module: str, place: _Place, rank: int) -> list[Tensor]:
    """A (rank, inputs) and B (outputs, rank) of a module; of a table, the rows are its inputs."""
    rows, columns = sum(shape[0] for shape in place.shapes), place.shapes[0][1]
    if place.is_table:
        expected = {"lora_embedding_A": (rank, rows), "lora_embedding_B": (columns, rank)}
    else:
        expected = {"lora_A.weight": (rank, columns), "lora_B.weight": (rows, rank)}
    pair = []
    for part, shape in expected.items():
        name = f"{PREFIX}{module}.{part}"
        if name not in found:
            raise UserError(f"{path}: tensor `{name}` is missing")
        if found[name].shape != shape:
            raise UserError(f"{path}: tensor `{name}` has shape {tuple(found[name].shape)}, not {shape}")
        pair.append(found[name])
    return pair


def _split(place: _Place, up_or: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Our layers that a module consists of, each with its rows of B: the rule's own way with the rank as inputs."""
    if place.is_table:
        return iter([(place.rule.ours[0].removesuffix(".weight"), up_or)])
    operation = place.rule.operation
    disk = up_or.T if isinstance(operation, Joined) and operation.transposed else up_or
    parts = operation.from_disk([disk], [(outputs, up_or.shape[1]) for outputs, _ in place.shapes])
    return zip((name.removesuffix(".weight") for name in place.rule.ours), parts, strict=True)
