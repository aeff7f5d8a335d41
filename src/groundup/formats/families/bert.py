"""BERT, RoBERTa and DistilBERT, as masked language models, as classifiers of sequences and without a head.

Every token sees every other, layer norm after each sublayer and after the embedding, learned positions, biases
everywhere; `architectures` says which of them a folder holds. Sources: Devlin et al. 2019; Liu et al. 2019 (the
first position has the row after that of the padding token's id); Sanh et al. 2019 (no kinds of tokens).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from groundup.formats import fields
from groundup.formats.config_map import (
    OFF,
    ConfigMap,
    Entry,
    Facts,
    Field,
    Several,
    fixed,
    model_of,
    norm_of,
    read_facts,
    without_effect,
    write_keys,
)
from groundup.formats.families.gpt import PLAIN, PLAIN_KEYS
from groundup.formats.family import Family
from groundup.formats.keys import Keys
from groundup.formats.label_keys import classifier_keys, named_class, write_classifier
from groundup.formats.rules import Doubled, Rule, placed, same, with_biases, without_prefix
from groundup.model.config import ClassifierConfig, HeadTransform, ModelConfig
from groundup.model.specs import Activation

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

# Dropout, tokens' ids, and what older versions of `transformers` wrote into every file or only BERT's own files say.
WITHOUT_EFFECT = (
    "_num_labels attention_dropout attention_probs_dropout_prob classifier_dropout directionality dropout "
    "finetuning_task gradient_checkpointing hidden_dropout_prob num_labels output_past pooler_fc_size "
    "pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type qa_dropout seq_classif_dropout "
    "sinusoidal_pos_embds tie_weights_ torchscript"
)


def encoder_rules(
    config: EncoderConfig, prefix: str, body: Sequence[Rule], head: Mapping[str, str], classifier: Mapping[str, str]
) -> list[Rule]:
    """The rules of an encoder and of the head that it has, with those of the biases.

    prefix: of the body's names on disk, where there is a head beside it.
    """
    if isinstance(config, ClassifierConfig):
        return with_biases([*placed(body, "encoder.", ""), *same(classifier)])
    if _has_head(config):
        return with_biases([*body, *same(head)])
    return with_biases(without_prefix(body, prefix))


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


def _read_positions(keys: Keys, facts: Facts, offset: int = 0) -> None:
    """The table of positions, of which the first `offset` rows are no position's, and how many there are."""
    rows = keys.size("max_position_embeddings", default=512)
    if rows <= offset:
        raise ValueError(f"`max_position_embeddings` must be more than {offset}, the rows before the first position")
    facts |= {"max_positions": rows - offset, "learned_positions": fields.learned_positions(offset)}


def _write_positions(config: ModelConfig) -> dict[str, Any]:
    positions = config.learned_positions
    return {"max_position_embeddings": config.max_positions + (0 if positions is None else positions.offset)}


SHARED_KEYS: ConfigMap = {
    **without_effect(WITHOUT_EFFECT),
    "pruned_heads": OFF,
    "max_position_embeddings": Several(_read_positions, _write_positions),
    "vocab_size": fields.VOCABULARY,
}
BERT_KEYS = (
    PLAIN_KEYS
    | SHARED_KEYS
    | {
        "layer_norm_eps": fields.EPS.usually(1e-12),
        "position_embedding_type": fixed("absolute"),
        "type_vocab_size": Field("token_types", Keys.size, default=2),
    }
)
# Every token sees every other; without a head, which `with_head` adds.
ALWAYS: Facts = PLAIN | {
    "mixer.bias": fields.ALL,
    "mixer.causal": False,
    "layer.placement": "post",
    "final_norm": None,
    "embedding_norm": norm_of,
    "tied_head": True,
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


def _read_roberta_positions(keys: Keys, facts: Facts) -> None:
    _read_positions(keys, facts, offset=keys.count("pad_token_id", default=1) + 1)


def _write_roberta_positions(config: ModelConfig) -> dict[str, Any]:
    """Positions are counted from the padding token's id, whatever the tokenizer pads with."""
    pad = {} if config.learned_positions is None else {"pad_token_id": config.learned_positions.offset - 1}
    return _write_positions(config) | pad


ROBERTA_KEYS = BERT_KEYS | {"max_position_embeddings": Several(_read_roberta_positions, _write_roberta_positions)}


def _roberta_rules(config: EncoderConfig, transformers: int = 5) -> list[Rule]:
    bias = _bias_rule(config, "lm_head.bias", "lm_head.decoder.bias", transformers)
    return [*encoder_rules(config, "roberta.", same(ROBERTA_NAMES), ROBERTA_HEAD, ROBERTA_CLASSIFIER), bias]


DISTILBERT_KEYS = SHARED_KEYS | {
    "dim": fields.WIDTH,
    "n_heads": fields.EqualHeads("dim"),
    "n_layers": fields.LAYERS,
    "hidden_dim": fields.INNER,
    "activation": fields.ACTIVATION.usually("gelu"),
}


def _distilbert_rules(config: EncoderConfig) -> list[Rule]:
    bias = Rule(("head_bias",), ("vocab_projector.bias",))
    return [*encoder_rules(config, "distilbert.", same(DISTILBERT_NAMES), DISTILBERT_HEAD, DISTILBERT_CLASSIFIER), bias]


def _encoder(
    stem: str,
    table: Mapping[str, Entry],
    rules: Callable[[EncoderConfig], Sequence[Rule]],
    *,
    always: Facts = ALWAYS,
    head: Activation | None = None,
    pooler: Activation = "tanh",
    **traits: Any,
) -> Family[EncoderConfig]:
    """A family of encoders; stem: of the names of its classes.

    head, pooler: activations before the head of a masked language model, by default the layers' own, and before that of
        a classifier.
    """

    def read(keys: Keys) -> EncoderConfig:
        encoder = model_of(stem.lower(), read_facts(table, keys, always))
        layer = encoder.layers[0]
        masked = HeadTransform(head or layer.network.activation, layer.norm)
        return with_head(keys, encoder, stem, masked, HeadTransform(pooler, None))

    def write(config: EncoderConfig) -> dict[str, Any]:
        return write_head(config, stem) | write_keys(table, encoder_of(config))

    return Family(stem.lower(), f"{stem}ForMaskedLM", read, write, rules, **traits)


# What pre-training alone needed: whether one sentence follows the other, and the pooler before that.
BERT = _encoder(
    "Bert",
    BERT_KEYS,
    _bert_rules,
    ignored=("*embeddings.position_ids", "bert.pooler.*", "pooler.*", "cls.seq_relationship.*"),
    copies=(("cls.predictions.decoder.bias", "cls.predictions.bias"),),
    other_rules=(partial(_bert_rules, transformers=4), _tensorflow_rules),
)
ROBERTA = _encoder(
    "Roberta",
    ROBERTA_KEYS,
    _roberta_rules,
    head="gelu",
    ignored=("*embeddings.position_ids", "roberta.pooler.*", "pooler.*"),
    copies=(("lm_head.decoder.bias", "lm_head.bias"),),
    other_rules=(partial(_roberta_rules, transformers=4),),
)
DISTILBERT = _encoder(
    "DistilBert",
    DISTILBERT_KEYS,
    _distilbert_rules,
    always=ALWAYS | {"norm.eps": 1e-12},  # no file says it
    pooler="relu",
    ignored=("*embeddings.position_ids",),
)
