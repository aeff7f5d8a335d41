"""The stages of the street, in order: what each is called, reads, runs and writes.

A stage is a function `run(config, out, *, corpus=…, tokenizer=…)` that reads the folders of its inputs and writes one
folder. Function and config are named here as `module:attribute` and imported only when the stage runs.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from groundup.record.ledger import code_version, stage_key


@dataclass(frozen=True)
class Stage:
    """One step from artefacts to an artefact.

    name: the table in a recipe, the verb on the command line and the stage in the ledger.
    makes: the kind of artefact, by which other stages ask for it as an input.
    optional: inputs that are taken where they are at hand.
    rooms: whose source decides the outcome; a change there runs the stage again. What only reports, measures or stores
        (record, hardware, settings, storage) is not among them.
    parallel: under torchrun `run` is called on every rank, elsewhere and otherwise on the first alone.
    resumable: `run` goes on from what an interrupted one left in its working folder.
    fingerprint: function of the config that hashes what the stage reads from outside the run folder.
    """

    name: str
    makes: str
    folder: str
    function: str
    config: str
    inputs: tuple[str, ...]
    rooms: tuple[str, ...]
    summary: str
    parallel: bool = False
    resumable: bool = False
    makes_model: bool = False
    fingerprint: str | None = None
    optional: tuple[str, ...] = ()

    @property
    def config_kind(self) -> type[Any]:
        """The dataclass of its settings, imported when it is asked for."""
        kind: type[Any] = load(self.config)
        return kind

    def key(self, table: Mapping[str, Any], code: str, inputs: Mapping[str, str]) -> str:
        """What decides the outcome, as one hash. inputs: content hashes, so that equal bytes give an equal key."""
        return stage_key(self.name, table, code, inputs)

    def code(self) -> str:
        """The hash of the source that decides its outcome."""
        return code_version(self.rooms)


def load(name: str) -> Any:
    """The object called `module:attribute`."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


STAGES = (
    Stage(
        name="documents",
        makes="corpus",
        folder="01-corpus",
        function="groundup.corpus.documents:run",
        config="groundup.corpus.config:DocumentsConfig",
        inputs=(),
        rooms=("corpus",),
        summary="take documents as they are, with a split of your own",
        fingerprint="groundup.corpus.documents:fingerprint",
    ),
    Stage(
        name="corpus",
        makes="corpus",
        folder="01-corpus",
        function="groundup.corpus.pipeline:run",
        config="groundup.corpus.config:CorpusConfig",
        inputs=(),
        rooms=("corpus",),
        summary="read, clean, filter, deduplicate and split raw text",
        fingerprint="groundup.corpus.sources:source_fingerprint",
    ),
    Stage(
        name="tokenizer",
        makes="tokenizer",
        folder="02-tokenizer",
        function="groundup.tokens.tokenizer:run",
        config="groundup.tokens.config:TokenizerConfig",
        inputs=("corpus",),
        rooms=("tokens",),
        summary="train a byte-level BPE tokenizer on the corpus",
    ),
    Stage(
        name="tokens",
        makes="tokens",
        folder="03-tokens",
        function="groundup.tokens.shards:run",
        config="groundup.tokens.config:TokensConfig",
        inputs=("corpus", "tokenizer"),
        rooms=("tokens",),
        summary="encode the corpus into token shards",
    ),
    Stage(
        name="pretrain",
        makes="pretrain",
        folder="04-pretrain",
        function="groundup.train.pretrain:run",
        config="groundup.train.config:PretrainConfig",
        inputs=("tokens", "tokenizer"),
        rooms=("train", "tokens", "model", "formats", "engine", "quantize"),
        summary="train a model from random weights on text",
        parallel=True,
        resumable=True,
        makes_model=True,
    ),
    Stage(
        name="sft",
        makes="sft",
        folder="05-sft",
        function="groundup.align.sft:run",
        config="groundup.align.config:SftConfig",
        inputs=("corpus", "pretrain"),
        rooms=("align", "assist", "train", "tokens", "model", "formats", "engine", "quantize"),
        summary="teach the model to answer in a conversation",
        parallel=True,
        resumable=True,
        makes_model=True,
    ),
    Stage(
        name="evaluate",
        makes="evaluate",
        folder="06-evaluate",
        function="groundup.evaluate.suite:run",
        config="groundup.evaluate.config:EvaluateConfig",
        inputs=("corpus", "tokens", "pretrain"),
        optional=("sft",),
        rooms=("evaluate", "assist", "train", "tokens", "model", "formats", "engine", "quantize"),
        summary="measure the model on held-out text and questions",
    ),
)
