"""Tiny models of BERT, RoBERTa, DistilBERT and ModernBERT, with values that differ from all defaults."""

from typing import Any

_TOKENS: dict[str, Any] = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SIZES: dict[str, Any] = _TOKENS | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "max_position_embeddings": 40,
}
_BERT = _SIZES | {"layer_norm_eps": 1e-3, "type_vocab_size": 3}
_ROBERTA = _BERT | {"pad_token_id": 3}
_DISTILBERT = _TOKENS | {"dim": 32, "hidden_dim": 48, "n_heads": 4, "n_layers": 3, "max_position_embeddings": 40}
_MODERNBERT = _SIZES | {
    "num_hidden_layers": 4,
    "norm_eps": 1e-3,
    "local_attention": 8,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 300.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
    },
}
_MODERNBERT_ROPES = _MODERNBERT["rope_parameters"]
_NAMES: dict[str, Any] = {
    "id2label": {0: "bad", 1: "so so", 2: "good"},
    "label2id": {"bad": 0, "so so": 1, "good": 2},
}

# Variant: (class, keys). The first word of a variant is the family.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForMaskedLM", _BERT),
    "bert head of its own": ("BertForMaskedLM", _BERT | {"tie_word_embeddings": False}),
    "bert approximate gelu": ("BertForMaskedLM", _BERT | {"hidden_act": "gelu_new", "type_vocab_size": 1}),
    "bert without a head": ("BertModel", _BERT),
    "bert classifier": ("BertForSequenceClassification", _BERT | _NAMES),
    "bert classifier, unnamed classes": ("BertForSequenceClassification", _BERT | {"hidden_act": "relu"}),
    "bert classifier, a number": ("BertForSequenceClassification", _BERT | {"num_labels": 1}),
    "roberta": ("RobertaForMaskedLM", _ROBERTA),
    "roberta usual padding": ("RobertaForMaskedLM", _ROBERTA | {"pad_token_id": 1, "type_vocab_size": 1}),
    "roberta relu": ("RobertaForMaskedLM", _ROBERTA | {"hidden_act": "relu"}),
    "roberta head of its own": ("RobertaForMaskedLM", _ROBERTA | {"tie_word_embeddings": False}),
    "roberta without a head": ("RobertaModel", _ROBERTA),
    "roberta classifier": ("RobertaForSequenceClassification", _ROBERTA | _NAMES),
    "distilbert": ("DistilBertForMaskedLM", _DISTILBERT),
    "distilbert head of its own": ("DistilBertForMaskedLM", _DISTILBERT | {"tie_word_embeddings": False}),
    "distilbert relu": ("DistilBertForMaskedLM", _DISTILBERT | {"activation": "relu"}),
    "distilbert sinusoids": ("DistilBertForMaskedLM", _DISTILBERT | {"sinusoidal_pos_embds": True}),
    "distilbert without a head": ("DistilBertModel", _DISTILBERT),
    "distilbert classifier": (
        "DistilBertForSequenceClassification",
        _DISTILBERT | _NAMES | {"problem_type": "multi_label_classification"},
    ),
    "modernbert": ("ModernBertForMaskedLM", _MODERNBERT),
    "modernbert head of its own": ("ModernBertForMaskedLM", _MODERNBERT | {"tie_word_embeddings": False}),
    "modernbert biases": (
        "ModernBertForMaskedLM",
        _MODERNBERT
        | {
            "attention_bias": True,
            "mlp_bias": True,
            "norm_bias": True,
            "classifier_bias": True,
            "decoder_bias": False,
            "classifier_activation": "silu",
            "hidden_activation": "gelu_pytorch_tanh",
        },
    ),
    "modernbert every second layer, odd window": (
        "ModernBertForMaskedLM",
        _MODERNBERT | {"global_attn_every_n_layers": 2, "local_attention": 7},
    ),
    "modernbert window longer than the text": ("ModernBertForMaskedLM", _MODERNBERT | {"local_attention": 100}),
    "modernbert no windows": ("ModernBertForMaskedLM", _MODERNBERT | {"global_attn_every_n_layers": 1}),
    "modernbert chosen layers": (
        "ModernBertForMaskedLM",
        _MODERNBERT | {"layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]},
    ),
    "modernbert stretched": (
        "ModernBertForMaskedLM",
        _MODERNBERT
        | {
            "rope_parameters": _MODERNBERT_ROPES
            | {"full_attention": {"rope_type": "linear", "rope_theta": 300.0, "factor": 3.0}}
        },
    ),
    "modernbert without a head": ("ModernBertModel", _MODERNBERT),
    "modernbert classifier": ("ModernBertForSequenceClassification", _MODERNBERT | _NAMES),
    "modernbert classifier, mean": (
        "ModernBertForSequenceClassification",
        _MODERNBERT | _NAMES | {"classifier_pooling": "mean", "classifier_bias": True, "norm_bias": True},
    ),
}
