"""What a config.json says of the head: which it is, and of a classifier how many classes, what they are called."""

from collections.abc import Mapping, Sequence
from typing import Any

from groundup.formats.keys import Keys
from groundup.model.config import ClassifierConfig

PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")


def named_class(keys: Keys, known: Sequence[str]) -> str:
    """The class that `architectures` names; a file that does not say holds the first of the known ones.

    Raises ValueError for any other class.
    """
    names = keys.texts("architectures") or [known[0]]
    if len(names) != 1 or names[0] not in known:
        raise ValueError(f"`architectures` is {names}; known are {', '.join(known)}")
    return names[0]


def read_labels(keys: Keys) -> tuple[str, ...]:
    """The names of the classes, in order.

    Without names they are LABEL_0, LABEL_1, …: `num_labels` of them, or two, as in `transformers`. `label2id` says the
    same the other way round and may not contradict it; names in it that no class has mean nothing.
    """
    named, numbered = keys.mapping("id2label"), keys.mapping("label2id") or {}
    if named is None:
        return tuple(f"LABEL_{number}" for number in range(keys.size("num_labels", "_num_labels", default=2)))
    labels = _in_order(named)
    if (count := keys.size("num_labels", "_num_labels", default=len(labels))) != len(labels):
        raise ValueError(f"`num_labels` is {count}, but `id2label` names {len(labels)} classes")
    for name, number in numbered.items():
        if name in labels and named.get(str(number)) != name:
            raise ValueError(f"`label2id` says that {name!r} is class {number!r}, `id2label` says otherwise")
    return labels


def _in_order(named: Mapping[str, Any]) -> tuple[str, ...]:
    labels = [named.get(str(number)) for number in range(len(named))]
    texts = [label for label in labels if isinstance(label, str)]
    if not texts or len(texts) != len(labels):
        raise ValueError(f"`id2label` must name the classes 0, 1, … by a text each, not {dict(named)!r}")
    return tuple(texts)


def classifier_keys(keys: Keys) -> dict[str, Any]:
    """The labels and the meaning of the outputs, as fields of a `ClassifierConfig`."""
    problem = keys.optional_choice("problem_type", among={name: name for name in PROBLEMS})
    return {"labels": read_labels(keys), "problem": problem}


def write_labels(labels: Sequence[str]) -> dict[str, Any]:
    """The keys that `read_labels` reads."""
    return {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }


def write_classifier(config: ClassifierConfig) -> dict[str, Any]:
    """The keys that `classifier_keys` reads."""
    problem = {} if config.problem is None else {"problem_type": config.problem}
    return problem | write_labels(config.labels)
