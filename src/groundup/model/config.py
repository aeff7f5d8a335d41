"""What a model is made of, as data: stacks of layers, what comes in below and what comes out above.

A family (LLaMA, BERT, T5, …) is one of these configurations, never a subclass. `layers` is written out once, one
`LayerSpec` per layer, so no code ever asks which layer it is.
"""

from dataclasses import dataclass
from typing import Literal

from groundup.model.specs import Activation, Attention, Induction, LayerSpec, Norm


@dataclass(frozen=True)
class RelativePositions:
    """A learned bias on attention scores by distance, one per head, the same in all layers of a stack (T5).

    buckets: rows of the table; the farther, the more distances share one, and all from max_distance on share the last.
    """

    buckets: int
    max_distance: int

    def __post_init__(self) -> None:
        if self.buckets < 4 or self.buckets % 4:
            raise ValueError(f"the buckets of relative positions must be a multiple of 4, not {self.buckets}")
        if self.max_distance <= self.buckets // 2:
            raise ValueError(f"{self.buckets} buckets need a largest distance of more than {self.buckets // 2}")


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """Layers, and the norm after them.

    final_norm: after the last layer, or None.
    relative_positions: bias on the scores of all self-attention, or None.
    """

    width: int
    layers: tuple[LayerSpec, ...]
    final_norm: Norm | None
    relative_positions: RelativePositions | None = None

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("a model needs at least one layer")
        if self.width < 1:
            raise ValueError(f"`width` must be positive, not {self.width}")
        if self.relative_positions is not None:
            heads = {layer.mixer.heads if isinstance(layer.mixer, Attention) else 0 for layer in self.layers}
            if len(heads) > 1 or 0 in heads:
                raise ValueError("relative positions need plain attention with equally many heads in every layer")

    @property
    def causal(self) -> bool:
        """Whether no position depends on a later one."""
        return all(layer.mixer.causal for layer in self.layers)

    def matmul_parameters(self) -> int:
        """Parameters that take part in matrix products for each token; of experts only those that it chooses."""
        return sum(layer.matmul_parameters(self.width) for layer in self.layers)

    def training_flops_per_token(self, context: int) -> int:
        """FLOPs of one training token: 6 per matmul parameter, plus attention over the full context.

        Attention is counted without halving for causality (PaLM, appendix B; the convention of nanochat).
        """
        scores = sum(layer.mixer.score_flops(context) for layer in self.layers)
        cross = sum(layer.cross.score_flops(context) for layer in self.layers if layer.cross is not None)
        return 6 * self.matmul_parameters() + scores + cross


@dataclass(frozen=True)
class LearnedPositions:
    """A table of learned position vectors, added to the embedding.

    rows: positions it knows; offset: rows before that of position 0 (OPT, RoBERTa).
    """

    rows: int
    offset: int = 0


@dataclass(frozen=True)
class HeadTransform:
    """What an encoder's output passes through before the head: norm(act(W x)) (BERT).

    norm: None where there is none (the pooler of BERT's classifiers).
    """

    activation: Activation
    norm: Norm | None
    bias: bool = True


@dataclass(frozen=True, kw_only=True)
class ModelConfig(StackConfig):
    """A language model over token ids: a decoder, an encoder or a recurrent one, as its layers are.

    family: names the Hugging Face layout it is saved in (`formats/families/`); changes nothing in the forward pass.
    embedding_norm: a norm right after the token embedding, or None.
    tied_head: the output head is the embedding matrix.
    logit_softcap: logits become cap · tanh(logits / cap), or None.
    max_positions: longest sequence, in tokens, that the model is meant for.
    learned_positions: added to the embedding, or None.
    token_types: rows of a table of vectors for kinds of tokens, such as two sentences, added to the embedding (BERT).
    embedding_scale: factor on the token embedding (Gemma), or None.
    embedding_width: of the embedding and head where it is not the layers' (OPT 350m): a matrix leads in and one out.
    head_transform: what the output passes through before the head, or None.
    head_bias: the output head has a bias.
    logit_scale: factor on what the head is given, and so on the logits (Cohere), or None.
    ngram_buckets: rows of the table that each pair of neighbouring tokens is hashed into, then each triple, …; every
        layer sees the sum of these rows.
    induction: what followed the last tokens where they stood before is offered to layers and head; or None.
    residual_mix: before each layer the residual is mixed, by learned scalars, with what entered the first layer.
    """

    family: str
    vocab_size: int
    tied_head: bool
    max_positions: int
    embedding_norm: Norm | None = None
    logit_softcap: float | None = None
    learned_positions: LearnedPositions | None = None
    token_types: int = 0
    embedding_scale: float | None = None
    embedding_width: int | None = None
    head_transform: HeadTransform | None = None
    head_bias: bool = False
    logit_scale: float | None = None
    ngram_buckets: tuple[int, ...] = ()
    induction: Induction | None = None
    residual_mix: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vocab_size < 1:
            raise ValueError(f"`vocab_size` must be positive, not {self.vocab_size}")
        for name in ("ngram_buckets", "induction"):
            if getattr(self, name) and not self.residual_mix:
                raise ValueError(f"`{name}` needs `residual_mix`, which is where the layers take it in")
            if getattr(self, name) and not self.causal:
                raise ValueError(f"`{name}` needs layers that look back alone: it reads the tokens before each")
        if len(self.ngram_buckets) > 2:
            raise ValueError(f"`ngram_buckets` knows pairs and triples, not {len(self.ngram_buckets)} sizes")
        if self.learned_positions is not None and self.learned_positions.rows < self.max_positions:
            raise ValueError(
                f"a table of {self.learned_positions.rows} positions cannot hold {self.max_positions} of them"
            )

    @property
    def table_width(self) -> int:
        """Width of the embedding and of the head."""
        return self.embedding_width or self.width

    @property
    def mixed_terms(self) -> int:
        """What each layer's residual is mixed from: itself, the first layer's input, n-grams, followers."""
        return 2 + bool(self.ngram_buckets) + (self.induction is not None)

    def matmul_parameters(self) -> int:
        """Parameters that take part in matrix products for each token: layers and head, not the embedding look-up."""
        total = super().matmul_parameters() + self.vocab_size * self.table_width
        total += 0 if self.embedding_width is None else 2 * self.width * self.embedding_width
        total += 0 if self.head_transform is None else self.table_width**2
        total += 0 if self.induction is None else self.induction.terms * self.width
        return total


@dataclass(frozen=True, kw_only=True)
class AudioConfig(StackConfig):
    """An encoder of sound: two convolutions over a log-mel spectrogram, then layers (Whisper, Radford et al. 2022).

    mel_bins: of the spectrogram; positions: the most that come out of the convolutions, one for two frames.
    """

    mel_bins: int
    positions: int

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mel_bins", "positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, not {getattr(self, name)}")

    def matmul_parameters(self) -> int:
        """Of the layers and, for the two frames of each position, of the convolutions."""
        return super().matmul_parameters() + 3 * self.width * (2 * self.mel_bins + self.width)


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig:
    """A decoder whose layers also attend to the output of an encoder (Vaswani et al. 2017).

    encoder: of sound, or of text, which then has the decoder's embedding.
    start_id: the token that every target begins with; changes nothing in the forward pass.
    """

    family: str
    encoder: StackConfig
    decoder: ModelConfig
    start_id: int = 0

    def __post_init__(self) -> None:
        if any(layer.mixer.causal for layer in self.encoder.layers):
            raise ValueError("an encoder's layers must see all of its text, not only what came before")
        if not self.decoder.causal or any(layer.cross is None for layer in self.decoder.layers):
            raise ValueError("a decoder's layers must look back alone and attend to the encoder's output")
        if any(layer.cross is not None for layer in self.encoder.layers):
            raise ValueError("an encoder's layers have no other sequence to attend to")
        if isinstance(self.encoder, ModelConfig):
            raise ValueError("an encoder has no vocabulary of its own: it reads with the decoder's embedding")
        if self.encoder.width != self.decoder.width:
            raise ValueError(
                f"encoder and decoder must be equally wide, not {self.encoder.width} and {self.decoder.width}"
            )
        mixers = [layer.mixer for layer in (*self.encoder.layers, *self.decoder.layers)]
        if any(isinstance(mixer, Attention) and mixer.window is not None for mixer in mixers):
            raise ValueError("an attention window is for decoders and encoders alone, not for the two together")
        if not 0 <= self.start_id < self.vocab_size:
            raise ValueError(f"`start_id` ({self.start_id}) is not a token of a vocabulary of {self.vocab_size}")

    @property
    def vocab_size(self) -> int:
        return self.decoder.vocab_size

    @property
    def max_positions(self) -> int:
        """Longest target, in tokens, that the model is meant for."""
        return self.decoder.max_positions

    def matmul_parameters(self) -> int:
        """Of a token of the source and one of the target together."""
        return self.encoder.matmul_parameters() + self.decoder.matmul_parameters()

    def training_flops(self, source: int, target: int) -> int:
        """FLOPs of training on one source and one target of so many tokens, by the rule for one token of a stack.

        Keys and values of cross-attention are computed for each token of the source, its scores for each of the target.
        """
        width, crossing = self.decoder.width, [layer.cross for layer in self.decoder.layers if layer.cross is not None]
        keys_values = sum(2 * width * cross.kv_heads * cross.head_dim for cross in crossing)
        own_scores = sum(layer.mixer.score_flops(target) for layer in self.decoder.layers)
        cross_scores = sum(cross.score_flops(source) for cross in crossing)
        per_target = 6 * (self.decoder.matmul_parameters() - keys_values) + own_scores + cross_scores
        per_source = 6 * keys_values + self.encoder.training_flops_per_token(source)
        return source * per_source + target * per_target

    def training_flops_per_token(self, context: int) -> int:
        """FLOPs of one token of a target of `context` tokens and one of a source that is as long."""
        return self.training_flops(context, context) // context


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A classifier of whole sequences on an encoder (Devlin et al. 2019, section 4.1).

    encoder: a model of token sequences without a head of its own.
    labels: what the classes are called; a single one stands for a number (regression).
    transform: what the pooled vector passes through before the last matrix.
    pooling: what stands for the sequence: its first token, or the mean over all.
    problem: what the outputs mean, in the words of `transformers`, or None where that follows from the labels; changes
        nothing in the forward pass.
    """

    encoder: ModelConfig
    labels: tuple[str, ...]
    transform: HeadTransform
    pooling: Literal["first", "mean"] = "first"
    problem: Literal["regression", "single_label_classification", "multi_label_classification"] | None = None

    def __post_init__(self) -> None:
        if not self.labels:
            raise ValueError("a classifier needs at least one class")
        if not self.encoder.tied_head or self.encoder.head_bias or self.encoder.head_transform is not None:
            raise ValueError("the encoder of a classifier has no head of its own")

    @property
    def family(self) -> str:
        """That of the encoder."""
        return self.encoder.family

    @property
    def classes(self) -> int:
        """How many numbers there are for each sequence."""
        return len(self.labels)
