"""config.json ⇄ configuration as one map, which serves both directions: what each key says.

A map leads from keys to entries. Read, they gather facts: values by their places in the configuration, to which a
family adds what none of its files says; `model_of` makes the configuration of them. Written, each entry says its key
again, from the first part of the configuration that has such a place.

A fact may be a function of the others, which it follows from. A place is dotted: `width` is the model's,
`layer.placement` a layer's, `norm.eps`, `feed_forward.width`, `router.chosen` and `mixer.heads` belong to its parts. A
layer's mixer is attention unless `layer.mixer` names another kind; it has experts where there are facts of a `router`,
unless `layer.sparse` is false.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Protocol, TypeVar

from groundup.formats.keys import Keys
from groundup.model.config import ModelConfig, StackConfig
from groundup.model.delta_specs import GatedDeltaNet, ShortConvolution
from groundup.model.recurrent_specs import Mamba, Mamba2
from groundup.model.specs import Attention, Experts, FeedForward, LatentAttention, LayerSpec, Norm, Router

Stack = TypeVar("Stack", bound=StackConfig)
Facts = dict[str, Any]
REQUIRED = object()
MIXERS: dict[str, type[Any]] = {
    "mixer": Attention,
    "latent": LatentAttention,
    "mamba": Mamba,
    "mamba2": Mamba2,
    "delta": GatedDeltaNet,
    "convolution": ShortConvolution,
}
# What is written where no layer attends: the keys must be there, and say nothing.
NO_ATTENTION = Attention(1, 1, 2)


class Entry(Protocol):
    """What a key says, or several that belong together.

    read: raises ValueError or KeyError, naming the key, for what is not understood.
    """

    def read(self, key: str, keys: Keys, facts: Facts) -> None: ...

    def write(self, key: str, config: StackConfig) -> dict[str, Any]:
        """The keys that `read` would make the same of."""
        ...


# What takes one takes any mapping; as dicts they can be put together by `|`, in which the later entry counts.
ConfigMap = dict[str, Entry]


@dataclass(frozen=True)
class PerLayer:
    """A fact that is another one in each layer."""

    values: tuple[Any, ...]


def _as_it_is(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Field:
    """One value of the configuration.

    reader: that of `Keys` for such a value; older: further names of the key, which are read, never written.
    default: what a file without the key means, or a function of the facts so far; null_means: likewise for null.
    ours, theirs: from what is read to the fact, and back.
    """

    place: str
    reader: Callable[..., Any]
    default: Any = REQUIRED
    older: tuple[str, ...] = ()
    null_means: Callable[[Facts], Any] | None = None
    ours: Callable[[Any], Any] = _as_it_is
    theirs: Callable[[Any], Any] = _as_it_is

    def usually(self, default: Any) -> "Field":
        """The same with a default."""
        return replace(self, default=default)

    def also(self, *older: str) -> "Field":
        """The same with further names."""
        return replace(self, older=older)

    def read(self, key: str, keys: Keys, facts: Facts) -> None:
        default = self.default(facts) if callable(self.default) else self.default
        found = self.reader(keys, key, *self.older, **({} if default is REQUIRED else {"default": default}))
        unsaid = found is None and self.null_means is not None
        facts[self.place] = self.null_means(facts) if unsaid and self.null_means else self.ours(found)

    def write(self, key: str, config: StackConfig) -> dict[str, Any]:
        part, _, name = self.place.rpartition(".")
        owner = _part(config, part)
        return {} if owner is None else {key: self.theirs(getattr(owner, name))}


@dataclass(frozen=True)
class Several:
    """Keys that say something together; the one that stands in the map is any of them."""

    reads: Callable[[Keys, Facts], None]
    writes: Callable[[Any], dict[str, Any]] = lambda config: {}

    def read(self, key: str, keys: Keys, facts: Facts) -> None:
        self.reads(keys, facts)

    def write(self, key: str, config: StackConfig) -> dict[str, Any]:
        return self.writes(config)


@dataclass(frozen=True)
class Checked:
    """A key that says nothing of the configuration, once `check` has seen it; it is not written."""

    check: Callable[[Keys, str], None]

    def read(self, key: str, keys: Keys, facts: Facts) -> None:
        self.check(keys, key)

    def write(self, key: str, config: StackConfig) -> dict[str, Any]:
        return {}


# A switch that must not be on.
OFF = Checked(Keys.off)
NO_EFFECT = Checked(Keys.without_effect)


def without_effect(names: str) -> ConfigMap:
    """Keys that change nothing in what the model computes; names: separated by spaces."""
    return dict.fromkeys(names.split(), NO_EFFECT)


def fixed(value: Any) -> Checked:
    """A key that may be absent, or say the one thing that our parts stand for."""
    return Checked(lambda keys, key: keys.fixed(**{key: value}))


def read_facts(table: Mapping[str, Entry], keys: Keys, always: Facts | None = None) -> Facts:
    """What the keys say, beside what the family has always."""
    facts = dict(always or {})
    for key, entry in table.items():
        entry.read(key, keys, facts)
    return facts


def write_keys(table: Mapping[str, Entry], config: StackConfig) -> dict[str, Any]:
    """The keys of a configuration."""
    return dict(chain.from_iterable(entry.write(key, config).items() for key, entry in table.items()))


def model_of(family: str, facts: Facts) -> ModelConfig:
    """The language model of the facts."""
    return stack_of(ModelConfig, {"family": family} | facts)


def stack_of(kind: type[Stack], facts: Facts) -> Stack:
    """Layers with what is around them; the last norm is that of the layers, unless the facts say otherwise."""
    whole: Facts = {"final_norm": norm_of, **facts}
    own: Facts = {place: one(whole) if callable(one) else one for place, one in whole.items() if "." not in place}
    return kind(**{**own, "layers": layers_of(facts)})


def norm_of(facts: Facts) -> Norm:
    """The norm of the layers."""
    return Norm(**_parts(facts)["norm"])


def layers_of(facts: Facts) -> tuple[LayerSpec, ...]:
    """The layers of the facts, of which `layers` is how many."""
    count = facts["layers"]
    facts = {place: one(facts) if callable(one) else one for place, one in facts.items() if "." in place}
    if not any(isinstance(value, PerLayer) for value in facts.values()):
        return (_layer(facts),) * count
    return tuple(
        _layer({place: one.values[index] if isinstance(one, PerLayer) else one for place, one in facts.items()})
        for index in range(count)
    )


def _layer(facts: Facts) -> LayerSpec:
    parts = _parts(facts)
    traits = parts.get("layer", {})
    kind, is_sparse = traits.pop("mixer", "mixer"), traits.pop("sparse", True)
    network = _network(parts, is_sparse) if "feed_forward" in parts else None
    return LayerSpec(MIXERS[kind](**parts[kind]), network, norm_of(facts), **traits)


def _parts(facts: Facts) -> dict[str, Facts]:
    """The facts of each part of a layer."""
    parts: dict[str, Facts] = {}
    for place, value in facts.items():
        part, _, name = place.rpartition(".")
        parts.setdefault(part, {})[name] = value
    return parts


def _network(parts: Mapping[str, Facts], is_sparse: bool) -> FeedForward | Experts:
    """The network of a layer; its experts, and the one beside them, are like it but for what is said of them."""
    dense = FeedForward(**parts["feed_forward"])
    if "router" not in parts or not is_sparse:
        return dense
    shared = replace(dense, **parts["shared"]) if "shared" in parts else None
    return Experts(
        replace(dense, **parts.get("expert", {})), Router(**parts["router"]), shared, **parts.get("experts", {})
    )


def experts_of(config: StackConfig) -> Experts | None:
    """Those of a model whose experts are alike in every layer that has any."""
    return next((layer.feed_forward for layer in config.layers if isinstance(layer.feed_forward, Experts)), None)


def _part(config: StackConfig, name: str) -> Any:
    """The first part of this name that there is, or None."""
    if name == "mixer":
        attention = (one.mixer for one in config.layers if isinstance(one.mixer, Attention | LatentAttention))
        return next(attention, NO_ATTENTION)
    if name in MIXERS:
        return next((layer.mixer for layer in config.layers if isinstance(layer.mixer, MIXERS[name])), None)
    if name in ("experts", "router", "expert", "shared"):
        experts = experts_of(config)
        return experts if name == "experts" else getattr(experts, name, None)
    if name == "feed_forward":
        dense = (layer.feed_forward for layer in config.layers if isinstance(layer.feed_forward, FeedForward))
        return next(dense, _part(config, "expert"))
    layer = config.layers[0]
    return {"": config, "layer": layer, "norm": layer.norm}[name]
