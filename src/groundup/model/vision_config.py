"""Models that see, as data: towers over image patches, alone, beside a text tower or below a language model."""

from dataclasses import dataclass
from typing import Literal

from groundup.model.config import ModelConfig, StackConfig
from groundup.model.specs import Activation, Attention, FeedForward, Norm

# Which token of a text stands for all of it: the last one (SigLIP), the first that ends a text, or the one with the
# highest number, which is the end in the vocabulary that CLIP was published with.
TextPooling = Literal["last", "end", "highest"]


@dataclass(frozen=True)
class AttentionPool:
    """One learned query looks at all patches, then a feed-forward network (Zhai et al. 2022, section 3.3).

    norm: before the network; around the network alone there is a residual.
    """

    attention: Attention
    feed_forward: FeedForward
    norm: Norm

    def __post_init__(self) -> None:
        if self.attention.causal:
            raise ValueError("the query that pools an image looks at all of its patches, in no order")


@dataclass(frozen=True, kw_only=True)
class PatchConfig(StackConfig):
    """A tower over the patches of an image, with learned positions (Dosovitskiy et al. 2021).

    image_size, patch_size: height and width in pixels; what fills no whole patch at the bottom and right is not seen.
    patch_bias: the map from a patch to its vector has one.
    class_token: a learned vector stands before the patches, and what becomes of it stands for the image.
    embedding_norm: before the first layer (CLIP), or None.
    pool: makes one vector of all patches instead, or None.
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    channels: int = 3
    patch_bias: bool = True
    class_token: bool = True
    embedding_norm: Norm | None = None
    pool: AttentionPool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels < 1 or min(self.patch_size) < 1:
            raise ValueError(f"patches must hold pixels, not {self.channels} × {self.patch_size}")
        if min(self.grid) < 1:
            raise ValueError(f"a patch of {self.patch_size} pixels does not fit into an image of {self.image_size}")
        if any(layer.mixer.causal for layer in self.layers):
            raise ValueError("the layers of an image tower must see all patches, not only those before")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        (height, width), (patch_height, patch_width) = self.image_size, self.patch_size
        return height // patch_height, width // patch_width

    @property
    def tokens(self) -> int:
        """Length of the sequence that an image becomes."""
        return self.grid[0] * self.grid[1] + self.class_token

    @property
    def patch_values(self) -> int:
        """Numbers in one patch."""
        return self.channels * self.patch_size[0] * self.patch_size[1]

    @property
    def pools(self) -> bool:
        """Whether the tower makes one vector of an image."""
        return self.class_token or self.pool is not None

    def matmul_parameters(self) -> int:
        """Parameters that take part in matrix products for each patch; what pools them is counted nowhere."""
        return super().matmul_parameters() + self.patch_values * self.width


@dataclass(frozen=True)
class ImageClassifierConfig:
    """An image tower and a linear layer with a score for each of `labels`, the names of the classes."""

    family: str
    image: PatchConfig
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.labels:
            raise ValueError("a classifier needs at least one label")
        if not self.image.pools:
            raise ValueError("a classifier needs a tower that makes one vector of an image")


@dataclass(frozen=True)
class Projection:
    """A linear map to vectors of this width."""

    width: int
    bias: bool = False


@dataclass(frozen=True, kw_only=True)
class DualEncoderConfig:
    """Texts and images as vectors that are compared by their angle (Radford et al. 2021; Zhai et al. 2023).

    text: a model whose output head is not used.
    text_pooling: which token stands for the text; end_token: the one that ends it, for `end`.
    text_projection, image_projection: after the towers, or None where a tower's own vector is compared.
    logit_bias: a learned number is added to every logit (SigLIP).
    """

    family: str
    text: ModelConfig
    image: PatchConfig
    text_pooling: TextPooling
    end_token: int | None = None
    text_projection: Projection | None
    image_projection: Projection | None
    logit_bias: bool = False

    def __post_init__(self) -> None:
        if (self.text_pooling == "end") != (self.end_token is not None):
            raise ValueError("the token that ends a text is needed for pooling there, and only for that")
        if not self.image.pools:
            raise ValueError("images can be compared only if their tower makes one vector of each")
        image_width = self.image.width if self.image_projection is None else self.image_projection.width
        if self.width != image_width:
            raise ValueError(
                f"vectors of {self.width} numbers for texts and {image_width} for images cannot be compared"
            )

    @property
    def width(self) -> int:
        """Of the vectors that are compared."""
        return self.text.width if self.text_projection is None else self.text_projection.width


@dataclass(frozen=True, kw_only=True)
class VisionLanguageConfig:
    """A language model that is given what an image tower sees in place of image tokens (Liu et al. 2023, LLaVA).

    image_token: the token that stands for one vector of an image.
    feature_layers: the layers of the tower whose outputs are taken, side by side, without the tower's last norm; 0 is
        what enters the first layer.
    keeps_first: whether the first vector of the sequence, that of the class token where there is one, is taken too.
    activation, bias: of the two linear layers between the towers.
    """

    family: str
    text: ModelConfig
    image: PatchConfig
    image_token: int
    feature_layers: tuple[int, ...]
    keeps_first: bool = False
    activation: Activation = "gelu"
    bias: bool = True

    def __post_init__(self) -> None:
        depth, text = len(self.image.layers), self.text
        if not self.feature_layers or not all(0 <= layer <= depth for layer in self.feature_layers):
            raise ValueError(f"features can be taken from layers 0 to {depth}, not from {list(self.feature_layers)}")
        if not 0 <= self.image_token < text.vocab_size:
            raise ValueError(
                f"the image token {self.image_token} is none of the {text.vocab_size} tokens of the text model"
            )
        if self.image_tokens < 1:
            raise ValueError("an image of one patch has nothing left without its first vector")
        if text.embedding_scale is not None or text.learned_positions is not None or text.embedding_norm is not None:
            raise ValueError("no rule says how images enter a text model that changes its embedding before the layers")

    @property
    def image_tokens(self) -> int:
        """How many tokens stand for one image."""
        return self.image.tokens - (not self.keeps_first)
