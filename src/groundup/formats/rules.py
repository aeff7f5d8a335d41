"""Rules that lead from the names and shapes of a file to ours and back: one table per family, used both ways.

A `Rule` names tensors here, tensors on disk, and the reversible operation between them. `*` stands for the number of a
layer; a rule whose tensors a model does not have (a head that is tied, a bias that is off) says nothing.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

Shape = tuple[int, ...]


class Operation(Protocol):
    """A reversible change of tensors; both directions give views where they can.

    views: whether what `from_disk` gives is never a copy.
    """

    @property
    def views(self) -> bool: ...

    def to_disk(self, ours: Sequence[Tensor]) -> list[Tensor]:
        """Our tensors as they lie on disk, both in the order of the rule."""
        ...

    def from_disk(self, disk: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """shapes: of our tensors, which `to_disk` would lay out as `disk` is."""
        ...


@dataclass(frozen=True)
class Same:
    """One tensor, as it is."""

    views = True

    def to_disk(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return list(ours)

    def from_disk(self, disk: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        return list(disk)


@dataclass(frozen=True)
class Joined:
    """Our tensors one after the other in their output dimension, as one on disk.

    transposed: matrices lie there as (inputs, outputs), as GPT-2's do; matrix products take them so.
    """

    views = True

    transposed: bool = False

    def to_disk(self, ours: Sequence[Tensor]) -> list[Tensor]:
        whole = torch.cat(list(ours)) if len(ours) > 1 else ours[0]
        return [whole.T if self.transposed else whole]

    def from_disk(self, disk: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        whole = disk[0].T if self.transposed else disk[0]
        return list(whole.split([shape[0] for shape in shapes]))


@dataclass(frozen=True)
class Doubled:
    """One tensor of ours, two on disk that should be equal and of which the first counts."""

    views = True

    def to_disk(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [ours[0], ours[0].clone()]

    def from_disk(self, disk: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        return [disk[0]]


@dataclass(frozen=True)
class Reshaped:
    """One tensor whose numbers lie on disk in another shape, in the same order: a filter for patches, a row of one."""

    views = False

    disk: Shape

    def to_disk(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [ours[0].reshape(self.disk)]

    def from_disk(self, disk: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        if tuple(disk[0].shape) != self.disk:
            raise ValueError(f"a tensor of shape {tuple(disk[0].shape)} where {self.disk} was expected")
        return [disk[0].reshape(shapes[0])]


@dataclass(frozen=True)
class JoinedByGroup:
    """Our tensors as one on disk that lies there by groups: for each its part of every one of them.

    With key-value heads as groups these are its queries, its key and its value: triples with as many of them as queries
    (GPT-NeoX), [queries, key, value] with one (Falcon).
    """

    groups: int
    views = False

    def to_disk(self, ours: Sequence[Tensor]) -> list[Tensor]:
        by_group = [tensor.unflatten(0, (self.groups, -1)) for tensor in ours]
        return [torch.cat(by_group, dim=1).flatten(0, 1)]

    def from_disk(self, disk: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        by_group = disk[0].unflatten(0, (self.groups, -1))
        parts = by_group.split([shape[0] // self.groups for shape in shapes], dim=1)
        return [part.flatten(0, 1) for part in parts]


@dataclass(frozen=True)
class Stacked:
    """One tensor of ours, a tensor on disk for each row of its first dimension: a matrix for each expert."""

    views = False

    def to_disk(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return list(ours[0].unbind())

    def from_disk(self, disk: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        return [torch.stack(list(disk))]


@dataclass(frozen=True)
class JoinedExperts:
    """Our stacks of matrices (experts, outputs, inputs), or of biases, joined in their outputs as one on disk.

    alternating: the outputs of all take turns, instead of lying one after the other.
    transposed: matrices lie there as (experts, inputs, outputs).
    """

    alternating: bool = False
    transposed: bool = False

    @property
    def views(self) -> bool:
        return not self.alternating

    def to_disk(self, ours: Sequence[Tensor]) -> list[Tensor]:
        whole = torch.stack(list(ours), dim=2).flatten(1, 2) if self.alternating else torch.cat(list(ours), dim=1)
        return [whole.mT if self.transposed else whole]

    def from_disk(self, disk: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        whole = disk[0].mT if self.transposed else disk[0]
        if self.alternating:  # copied: no matrix product takes every other row of a matrix as it lies
            return [whole[:, start :: len(shapes)].contiguous() for start in range(len(shapes))]
        return list(whole.split([shape[1] for shape in shapes], dim=1))


@dataclass(frozen=True)
class Rule:
    """Our tensors ⇄ tensors on disk."""

    ours: tuple[str, ...]
    disk: tuple[str, ...]
    operation: Operation = field(default_factory=Same)

    def of_layer(self, number: int) -> "Rule":
        """This rule for one layer."""
        ours, disk = (tuple(name.replace("*", str(number)) for name in names) for names in (self.ours, self.disk))
        return Rule(ours, disk, self.operation)


def same(names: Mapping[str, str]) -> list[Rule]:
    """Rules for tensors that only change their name: ours → that on disk."""
    return [Rule((ours,), (disk,)) for ours, disk in names.items()]


def named(names: Mapping[str, str]) -> Callable[[Any], list[Rule]]:
    """A table that is the same for every configuration: names alone, of weights and of the biases beside them."""
    rules = with_biases(same(names))
    return lambda config: rules


def with_biases(rules: Sequence[Rule]) -> list[Rule]:
    """The rules for the weights, and the like ones for the biases beside them."""

    def bias(name: str) -> str:
        return name.removesuffix("weight") + "bias"

    weights = [rule for rule in rules if all(name.endswith(".weight") for name in (*rule.ours, *rule.disk))]
    return [
        *rules,
        *(
            Rule(tuple(map(bias, rule.ours)), tuple(map(bias, rule.disk)), _of_vectors(rule.operation))
            for rule in weights
        ),
    ]


def placed(rules: Sequence[Rule], ours: str, disk: str) -> list[Rule]:
    """The rules of a part of a model, with what stands before its names here and on disk."""
    return [
        Rule(
            tuple(ours + name for name in rule.ours),
            tuple(disk + name for name in rule.disk),
            rule.operation,
        )
        for rule in rules
    ]


def without_prefix(rules: Sequence[Rule], prefix: str) -> list[Rule]:
    """The rules with names on disk that leave out a prefix."""
    return [Rule(rule.ours, tuple(name.removeprefix(prefix) for name in rule.disk), rule.operation) for rule in rules]


def concrete(rules: Sequence[Rule], shapes: Mapping[str, Shape]) -> list[Rule]:
    """The rules with layer numbers filled in that speak of tensors in `shapes`, each of which exactly one must name."""
    numbers: dict[str, set[int]] = {}
    for name in shapes:
        for match in re.finditer(r"(?<=\.)\d+(?=\.)", name):
            numbers.setdefault(name[: match.start()] + "*" + name[match.end() :], set()).add(int(match[0]))
    found = []
    for rule in rules:
        layers = sorted(set().union(*(numbers.get(name, set()) for name in rule.ours)))
        ones = map(rule.of_layer, layers) if "*" in "".join(rule.ours) else [rule]
        found += [one for one in ones if any(name in shapes for name in one.ours)]
    named = [name for rule in found for name in rule.ours]
    if sorted(named) != sorted(shapes):
        odd = sorted(set(named) ^ set(shapes)) or sorted({name for name in named if named.count(name) > 1})
        raise TypeError(f"the rule table does not name each tensor of the model once: {', '.join(odd)}")
    return found


def disk_tensors(rules: Sequence[Rule], ours: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """What a file holds for our tensors: (name on disk, tensor). rules: concrete ones."""
    for rule in rules:
        yield from zip(rule.disk, rule.operation.to_disk([ours[name] for name in rule.ours]), strict=True)


def our_tensors(
    rules: Sequence[Rule],
    get: Callable[[str], Tensor],
    shapes: Mapping[str, Shape],
    read: Callable[[str], Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Our tensors out of those that `get` finds by their names on disk. rules: concrete ones.

    read: finds the same tensors in memory of their own, where `get` gives views of a file; for those that are copied
        in any case, since what was read of a mapped file counts as memory until all of the file is let go.
    dtype: of the result; None keeps each tensor's own.
    Raises ValueError, naming the tensor on disk, for one that is not of the shape the model has.
    """
    for rule in rules:
        expected = [shapes[name] for name in rule.ours]
        wanted = rule.operation.to_disk([torch.empty(shape, device="meta") for shape in expected])
        disk = [get(name) for name in rule.disk]
        for name, tensor, like in zip(rule.disk, disk, wanted, strict=True):
            if tensor.shape != like.shape:
                raise ValueError(
                    f"tensor `{name}` has shape {tuple(tensor.shape)}, the configuration says {tuple(like.shape)}"
                )
        is_copied = not rule.operation.views or any(dtype not in (None, tensor.dtype) for tensor in disk)
        if is_copied and read is not None:
            disk = [read(name) for name in rule.disk]
        for name, tensor in zip(rule.ours, rule.operation.from_disk(disk, expected), strict=True):
            yield name, tensor if dtype is None else tensor.to(dtype)


def _of_vectors(operation: Operation) -> Operation:
    """The operation on biases that goes with one on matrices."""
    if isinstance(operation, Reshaped):
        return Same()
    return Joined() if isinstance(operation, Joined) else operation
