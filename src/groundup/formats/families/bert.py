"""BERT, RoBERTa and DistilBERT, as masked language models, as classifiers of sequences and without a head.

Every token sees every other, layer norm after each sublayer and after the embedding, learned positions, biases
everywhere; `architectures` says which of them a folder holds. Sources: Devlin et al. 2019; Liu et al. 2019 (the
first position has the row after that of the padding token's id); Sanh et al. 2019 (no kinds of tokens).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from groundup.formats.families.gpt import read_heads
from groundup.formats.families.llama import ACTIVATIONS, ALL, activation_name
from groundup.formats.family import Family
from groundup.formats.keys import Keys
from groundup.formats.label_keys import classifier_keys, named_class, write_classifier
from groundup.formats.rules import Doubled, Rule, same, with_biases
from groundup.model.config import ClassifierConfig, HeadTransform, LearnedPositions, ModelConfig
from groundup.model.specs import Activation, Attention, FeedForward, LayerSpec, Norm

EncoderConfig = ModelConfig | ClassifierConfig

BERT_NAMES = {
    "embedding.weight": "bert.embeddings.word_embeddings.weight",
    "positions.weight": "bert.embeddings.position_embeddings.weight",
    "token_types.weight": "bert.embeddings.token_type_embeddings.weight",
    "embedding_norm.weight": "bert.embeddings.LayerNorm.weight",
    "layers.*.mixer.query.weight": "bert.encoder.layer.*.attention.self.query.weight",
    "layers.*.mixer.key.weight": "bert.encoder.layer.*.attention.self.key.weight",
    "layers.*.mixer.value.weight": "bert.encoder.layer.*.attention.self.value.weight",
    "layers.*.mixer.output.weight": "bert.encoder.layer.*.attention.output.dense.weight",
    "layers.*.mixer_sum_norm.weight": "bert.encoder.layer.*.attention.output.LayerNorm.weight",
    "layers.*.feed_forward.up.weight": "bert.encoder.layer.*.intermediate.dense.weight",
    "layers.*.feed_forward.down.weight": "bert.encoder.layer.*.output.dense.weight",
    "layers.*.feed_forward_sum_norm.weight": "bert.encoder.layer.*.output.LayerNorm.weight",
}
BERT_HEAD = {
    "transform.linear.weight": "cls.predictions.transform.dense.weight",
    "transform.norm.weight": "cls.predictions.transform.LayerNorm.weight",
    "head.weight": "cls.predictions.decoder.weight",
}
BERT_CLASSIFIER = {"transform.linear.weight": "bert.pooler.dense.weight", "head.weight": "classifier.weight"}

ROBERTA_NAMES = {ours: disk.replace("bert.", "roberta.", 1) for ours, disk in BERT_NAMES.items()}
ROBERTA_HEAD = {
    "transform.linear.weight": "lm_head.dense.weight",
    "transform.norm.weight": "lm_head.layer_norm.weight",
    "head.weight": "lm_head.decoder.weight",
}
ROBERTA_CLASSIFIER = {
    "transform.linear.weight": "classifier.dense.weight",
    "head.weight": "classifier.out_proj.weight",
}

DISTILBERT_NAMES = {
    "embedding.weight": "distilbert.embeddings.word_embeddings.weight",
    "positions.weight": "distilbert.embeddings.position_embeddings.weight",
    "embedding_norm.weight": "distilbert.embeddings.LayerNorm.weight",
    "layers.*.mixer.query.weight": "distilbert.transformer.layer.*.attention.q_lin.weight",
    "layers.*.mixer.key.weight": "distilbert.transformer.layer.*.attention.k_lin.weight",
    "layers.*.mixer.value.weight": "distilbert.transformer.layer.*.attention.v_lin.weight",
    "layers.*.mixer.output.weight": "distilbert.transformer.layer.*.attention.out_lin.weight",
    "layers.*.mixer_sum_norm.weight": "distilbert.transformer.layer.*.sa_layer_norm.weight",
    "layers.*.feed_forward.up.weight": "distilbert.transformer.layer.*.ffn.lin1.weight",
    "layers.*.feed_forward.down.weight": "distilbert.transformer.layer.*.ffn.lin2.weight",
    "layers.*.feed_forward_sum_norm.weight": "distilbert.transformer.layer.*.output_layer_norm.weight",
}
DISTILBERT_HEAD = {
    "transform.linear.weight": "vocab_transform.weight",
    "transform.norm.weight": "vocab_layer_norm.weight",
    "head.weight": "vocab_projector.weight",
}
DISTILBERT_CLASSIFIER = {"transform.linear.weight": "pre_classifier.weight", "head.weight": "classifier.weight"}
# No file says it.
DISTILBERT_NORM = Norm("layer", 1e-12, bias=True)

# Dropout, tokens' ids, and what older versions of `transformers` wrote into every file or only BERT's own files say.
WITHOUT_EFFECT = (
    "_num_labels attention_dropout attention_probs_dropout_prob classifier_dropout directionality dropout "
    "finetuning_task gradient_checkpointing hidden_dropout_prob num_labels output_past pooler_fc_size "
    "pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type qa_dropout seq_classif_dropout "
    "sinusoidal_pos_embds tie_weights_ torchscript"
).split()


def encoder_rules(
    config: EncoderConfig, prefix: str, body: Sequence[Rule], head: Mapping[str, str], classifier: Mapping[str, str]
) -> list[Rule]:
    """The rules of an encoder and of the head that it has, with those of the biases.

    prefix: of the body's names on disk, where there is a head beside it.
    """
    if isinstance(config, ClassifierConfig):
        inside = [Rule(tuple(f"encoder.{name}" for name in rule.ours), rule.disk, rule.operation) for rule in body]
        return with_biases([*inside, *same(classifier)])
    if _has_head(config):
        return with_biases([*body, *same(head)])
    return with_biases(
        [Rule(rule.ours, tuple(name.removeprefix(prefix) for name in rule.disk), rule.operation) for rule in body]
    )


def with_head(
    keys: Keys, encoder: ModelConfig, stem: str, head: HeadTransform, classifier: HeadTransform, **changes: Any
) -> EncoderConfig:
    """The encoder with the head that `architectures` asks for; changes: to the fields of a classifier.

    One without a head has its embedding for one, which costs nothing: what leaves its layers is what counts.
    """
    keys.off("is_decoder", "add_cross_attention")
    tied = keys.flag("tie_word_embeddings", default=True)
    masked = (f"{stem}ForMaskedLM", *(("BertForPreTraining",) if stem == "Bert" else ()))
    name = named_class(keys, (*masked, f"{stem}ForSequenceClassification", f"{stem}Model"))
    if name in masked:
        return replace(encoder, tied_head=tied, head_transform=head, head_bias=True)
    if name == f"{stem}Model":
        return encoder
    return ClassifierConfig(encoder=encoder, transform=classifier, **classifier_keys(keys), **changes)


def write_head(config: EncoderConfig, stem: str) -> dict[str, Any]:
    """The keys that `with_head` reads."""
    if isinstance(config, ClassifierConfig):
        return {"architectures": [f"{stem}ForSequenceClassification"]} | write_classifier(config)
    if not _has_head(config):
        return {"architectures": [f"{stem}Model"]}
    return {"architectures": [f"{stem}ForMaskedLM"], "tie_word_embeddings": config.tied_head}


def _has_head(config: ModelConfig) -> bool:
    return config.head_transform is not None


def encoder_of(config: EncoderConfig) -> ModelConfig:
    """The encoder of a classifier, or the masked language model itself."""
    return config if isinstance(config, ModelConfig) else config.encoder


def _encoder(
    family: str,
    heads: tuple[int, int, int],
    layers: int,
    feed_forward: int,
    activation: Activation,
    norm: Norm,
    **sizes: Any,
) -> ModelConfig:
    """An encoder of BERT's shape, without a head; heads: see `read_heads`."""
    width, count, head_dim = heads
    layer = LayerSpec(
        Attention(count, count, head_dim, bias=ALL, causal=False),
        FeedForward(feed_forward, activation, gated=False, bias=True),
        norm,
        "post",
    )
    return ModelConfig(
        family=family,
        width=width,
        layers=(layer,) * layers,
        final_norm=None,
        embedding_norm=norm,
        tied_head=True,
        **sizes,
    )


def _positions(keys: Keys, offset: int = 0) -> dict[str, Any]:
    """The table of positions, of which the first `offset` rows are no position's, and how many there are."""
    rows = keys.size("max_position_embeddings", default=512)
    if rows <= offset:
        raise ValueError(f"`max_position_embeddings` must be more than {offset}, the rows before the first position")
    return {"max_positions": rows - offset, "learned_positions": LearnedPositions(rows - offset, offset)}


def _read_bert(keys: Keys, stem: str = "Bert", offset: int = 0, head: Activation | None = None) -> EncoderConfig:
    """head: activation before the head of a masked language model, where it is not the layers' own."""
    keys.without_effect(*WITHOUT_EFFECT)
    keys.off("pruned_heads")
    keys.fixed(position_embedding_type="absolute")
    activation = keys.choice("hidden_act", among=ACTIVATIONS, default="gelu")
    norm = Norm("layer", keys.positive("layer_norm_eps", default=1e-12), bias=True)
    encoder = _encoder(
        stem.lower(),
        read_heads(keys, "hidden_size", "num_attention_heads"),
        keys.size("num_hidden_layers"),
        keys.size("intermediate_size"),
        activation,
        norm,
        vocab_size=keys.size("vocab_size"),
        token_types=keys.size("type_vocab_size", default=2),
        **_positions(keys, offset),
    )
    return with_head(keys, encoder, stem, HeadTransform(head or activation, norm), HeadTransform("tanh", None))


def _write_bert(config: EncoderConfig, stem: str = "Bert") -> dict[str, Any]:
    encoder = encoder_of(config)
    layer, positions = encoder.layers[0], encoder.learned_positions
    return write_head(config, stem) | {
        "hidden_act": activation_name(layer.network.activation),
        "hidden_size": encoder.width,
        "intermediate_size": layer.network.width,
        "layer_norm_eps": layer.norm.eps,
        "max_position_embeddings": encoder.max_positions if positions is None else positions.rows + positions.offset,
        "num_attention_heads": layer.attention.heads,
        "num_hidden_layers": len(encoder.layers),
        "type_vocab_size": encoder.token_types,
        "vocab_size": encoder.vocab_size,
    }


def _bias_rule(config: EncoderConfig, bias: str, matrix_bias: str, transformers: int) -> Rule:
    """The bias of a masked language model's head, which has two names.

    transformers: the version. Where the head is not tied, 5 stores both and computes with that of the matrix alone.
    """
    if transformers < 5 or encoder_of(config).tied_head:
        return Rule(("head_bias",), (bias,))
    return Rule(("head_bias",), (matrix_bias, bias), Doubled())


def _bert_rules(config: EncoderConfig, transformers: int = 5) -> list[Rule]:
    bias = _bias_rule(config, "cls.predictions.bias", "cls.predictions.decoder.bias", transformers)
    return [*encoder_rules(config, "bert.", same(BERT_NAMES), BERT_HEAD, BERT_CLASSIFIER), bias]


def _tensorflow_rules(config: EncoderConfig) -> list[Rule]:
    """The names of Google's own files: the norms' weights are `gamma`, their biases `beta`."""

    def old(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    return [Rule(rule.ours, tuple(map(old, rule.disk)), rule.operation) for rule in _bert_rules(config)]


def _read_roberta(keys: Keys) -> EncoderConfig:
    return _read_bert(keys, "Roberta", offset=keys.count("pad_token_id", default=1) + 1, head="gelu")


def _write_roberta(config: EncoderConfig) -> dict[str, Any]:
    positions = encoder_of(config).learned_positions
    # Positions are counted from it, whatever the tokenizer pads with.
    pad = {} if positions is None else {"pad_token_id": positions.offset - 1}
    return _write_bert(config, "Roberta") | pad


def _roberta_rules(config: EncoderConfig, transformers: int = 5) -> list[Rule]:
    bias = _bias_rule(config, "lm_head.bias", "lm_head.decoder.bias", transformers)
    return [*encoder_rules(config, "roberta.", same(ROBERTA_NAMES), ROBERTA_HEAD, ROBERTA_CLASSIFIER), bias]


def _read_distilbert(keys: Keys) -> EncoderConfig:
    keys.without_effect(*WITHOUT_EFFECT)
    keys.off("pruned_heads")
    activation = keys.choice("activation", among=ACTIVATIONS, default="gelu")
    encoder = _encoder(
        "distilbert",
        read_heads(keys, "dim", "n_heads"),
        keys.size("n_layers"),
        keys.size("hidden_dim"),
        activation,
        DISTILBERT_NORM,
        vocab_size=keys.size("vocab_size"),
        **_positions(keys),
    )
    head = HeadTransform(activation, DISTILBERT_NORM)
    return with_head(keys, encoder, "DistilBert", head, HeadTransform("relu", None))


def _write_distilbert(config: EncoderConfig) -> dict[str, Any]:
    encoder = encoder_of(config)
    layer = encoder.layers[0]
    return write_head(config, "DistilBert") | {
        "activation": activation_name(layer.network.activation),
        "dim": encoder.width,
        "hidden_dim": layer.network.width,
        "max_position_embeddings": encoder.max_positions,
        "n_heads": layer.attention.heads,
        "n_layers": len(encoder.layers),
        "vocab_size": encoder.vocab_size,
    }


def _distilbert_rules(config: EncoderConfig) -> list[Rule]:
    bias = Rule(("head_bias",), ("vocab_projector.bias",))
    return [*encoder_rules(config, "distilbert.", same(DISTILBERT_NAMES), DISTILBERT_HEAD, DISTILBERT_CLASSIFIER), bias]


# What pre-training alone needed: whether one sentence follows the other, and the pooler before that.
BERT = Family(
    "bert",
    "BertForMaskedLM",
    _read_bert,
    _write_bert,
    _bert_rules,
    ignored=("*embeddings.position_ids", "bert.pooler.*", "pooler.*", "cls.seq_relationship.*"),
    copies=(("cls.predictions.decoder.bias", "cls.predictions.bias"),),
    other_rules=(partial(_bert_rules, transformers=4), _tensorflow_rules),
)
ROBERTA = Family(
    "roberta",
    "RobertaForMaskedLM",
    _read_roberta,
    _write_roberta,
    _roberta_rules,
    ignored=("*embeddings.position_ids", "roberta.pooler.*", "pooler.*"),
    copies=(("lm_head.decoder.bias", "lm_head.bias"),),
    other_rules=(partial(_roberta_rules, transformers=4),),
)
DISTILBERT = Family(
    "distilbert",
    "DistilBertForMaskedLM",
    _read_distilbert,
    _write_distilbert,
    _distilbert_rules,
    ignored=("*embeddings.position_ids",),
)
