"""The sizes that a preset is built from, and what follows from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from groundup.model.config import ModelConfig
from groundup.model.specs import LayerSpec, Norm


@dataclass(frozen=True)
class Sizes:
    """depth: layers; context: most positions; width: of the model, made up of heads of head_dim."""

    depth: int
    vocab_size: int
    context: int
    width: int
    head_dim: int

    @property
    def heads(self) -> int:
        """Heads of queries."""
        return self.width // self.head_dim

    @property
    def half_heads(self) -> int:
        """Heads of keys and values: one for two queries' where that works out."""
        return self.heads // 2 if self.heads % 2 == 0 else self.heads

    def gated(self, parts: int = 1) -> int:
        """The width of one of `parts` gated networks that are together as wide as LLaMA's: 8/3 of the model."""
        step = 64 if parts == 1 else 32
        return -(-self.width * 8 // (3 * parts * step)) * step

    def part_of_context(self, parts: int) -> int:
        """Tokens that a window sees."""
        return max(1, self.context // parts)

    def model(
        self, family: str, layers: LayerSpec | Sequence[LayerSpec], final_norm: Norm | None, **traits: Any
    ) -> ModelConfig:
        """A model of these layers, or of `depth` times this one; with a tied head, unless the traits say otherwise."""
        if isinstance(layers, LayerSpec):
            layers = (layers,) * self.depth
        return ModelConfig(
            family=family,
            vocab_size=self.vocab_size,
            width=self.width,
            layers=tuple(layers),
            final_norm=final_norm,
            max_positions=self.context,
            **{"tied_head": True} | traits,
        )
