"""The pre-training stage: token shards in, a model folder out."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from groundup.errors import UserError
from groundup.model.config import EncoderDecoderConfig
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.initialise import initialise
from groundup.model.language_model import LanguageModel
from groundup.model.presets import build_config
from groundup.storage import write_json
from groundup.tokens.batches import PackedDocuments
from groundup.tokens.sample import sample_text
from groundup.tokens.shards import Shards
from groundup.tokens.tokenizer import Tokenizer
from groundup.train.balance import Balance, published_balance
from groundup.train.checkpoint import remove_checkpoint
from groundup.train.config import PretrainConfig
from groundup.train.heldout import heldout_loss
from groundup.train.learner import Learner, TextModel
from groundup.train.loop import train
from groundup.train.objectives import MASKED_TOKENS, TextConfig, objective_of
from groundup.train.optim import LearningRates
from groundup.train.outcome import SAMPLES_FILE, Samples, save_trained, served_in, summarise, write_speed
from groundup.train.parallel import join_ranks
from groundup.train.plan import LoopConfig, check_split, plan
from groundup.train.pseudo_likelihood import pseudo_figures

DEFAULT_MINUTES = 5.0
# Windows of held-out text looked at on the way; `heldout_megabytes` of it are scored once, at the end.
WATCHED_WINDOWS = 48
# Part of the budget after which a model that will be served in few bits is rounded (docs/quantization.md).
ROUNDED_FROM = 0.8


def run(config: PretrainConfig, out: Path, *, tokens: Path, tokenizer: Path) -> None:
    """Train a model from random weights on `tokens/train`, watching `tokens/heldout`.

    Writes a Hugging Face model folder, `metrics.jsonl`, `timings.jsonl`, for a model that continues text
    `samples.jsonl` ({step, prompt, text}), and `summary.json` (the keys of `outcome.summarise`, of `Objective.summary`,
    epochs, learning rates). Goes on from a checkpoint found in `out`.
    """
    ranks = join_ranks()
    shards, heldout = Shards.open(tokens / "train"), Shards.open(tokens / "heldout")
    shards.check_tokenizer(tokenizer)
    if heldout.total_tokens == 0:
        raise UserError(f"{tokens / 'heldout'}: no text to score the model on; hold out at least one document")
    words = Tokenizer.load(tokenizer)
    objective = objective_of(build_shape(config, words.vocab_size))
    words = words.with_control(objective.control_tokens)
    model = build_model(config, words.vocab_size, words.bos_id)
    try:
        packed = PackedDocuments(shards, config.context, words.bos_id, config.seed)
    except ValueError as error:
        raise UserError(f"{tokens / 'train'}: {error}") from None
    source = objective.rows(packed, words, config.mask_fraction, config.seed)
    loop = loop_config(config, model.config, shards.total_tokens, shards.total_bytes / shards.total_tokens)
    check_split(loop.rows_per_step, loop.micro_rows, ranks.count)
    prompts = {prompt: [words.bos_id, *words.encode(prompt)] for prompt in config.sample_prompts}
    samples = None
    if objective.continues_text and isinstance(model, LanguageModel):
        samples = Samples(out / SAMPLES_FILE, model, words, prompts)
    corruption = objective.heldout_corruption(words, config.mask_fraction)

    def watch(step: int) -> Mapping[str, float]:
        """Figures of some held-out text, and on the leading rank samples of what the model writes."""
        model.eval()
        loss = heldout_loss(
            model, heldout, config.context, words.bos_id, windows=WATCHED_WINDOWS, corruption=corruption
        )
        if ranks.leads and samples is not None:
            samples.take(step)
        model.train()
        return objective.figures(loss)

    learner = Learner(model, balance(config, model), config.quantize)
    result = train(learner, source, loop, out, watch, ranks)
    if not ranks.leads:
        return
    with learner.as_served():
        scored = sample_text(heldout, words, config.heldout_megabytes)
        final = heldout_loss(model.eval(), scored, config.context, words.bos_id, corruption=corruption)
        pseudo = pseudo_figures(model, heldout, config.context, words)
    save_trained(model, words, tokenizer, out)
    read = result.steps * config.batch_tokens
    figures = objective.summary(final) | {
        # Of text; an objective may guess but a part of them.
        "tokens": read,
        "epochs": round(read / shards.total_tokens, 3),
        **({"mask_fraction": config.mask_fraction} if objective is MASKED_TOKENS else {}),
        **served_in(config.quantize, loop.title, result),
        "learning_rates": asdict(loop.learning_rates),
        **pseudo,
    }
    write_json(out / "summary.json", summarise(model, config.context, loop, result) | figures)
    write_speed(out, loop, result)
    remove_checkpoint(out)


def build_shape(config: PretrainConfig, vocab_size: int) -> TextConfig:
    """The configured shape of a model."""
    try:
        return build_config(config.preset, config.depth, vocab_size, config.context, config.width, config.head_dim)
    except ValueError as error:
        raise UserError(f"[pretrain]: {error}") from None


def build_model(config: PretrainConfig, vocab_size: int, bos_id: int = 0) -> TextModel:
    """A freshly initialised model of the configured shape."""
    shape = build_shape(config, vocab_size)
    model: TextModel
    if isinstance(shape, EncoderDecoderConfig):
        model = EncoderDecoder(replace(shape, start_id=bos_id))
    else:
        model = LanguageModel(shape)
    initialise(model, config.seed)
    return model


def balance(config: PretrainConfig, model: TextModel) -> Balance | None:
    """How experts are kept busy: as settings say, else as published; None for a model without experts."""
    published = published_balance(model)
    settings = {
        "load": config.load_balance_loss,
        "z": config.router_z_loss,
        "correction": config.router_correction,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    if published is None and given:
        raise UserError(
            f"[pretrain]: preset {config.preset} has no experts to keep in balance; give no settings for them"
        )
    return None if published is None else replace(published, **given)


def loop_config(config: PretrainConfig, shape: TextConfig, text_tokens: int, bytes_per_token: float) -> LoopConfig:
    """The loop's settings; a budget in epochs, tokens or FLOPs becomes a number of steps here."""
    objective = objective_of(shape)
    flops_per_token = objective.flops_per_token(shape, config.context, config.mask_fraction)
    steps = None
    if config.tokens is not None:
        steps = max(1, config.tokens // config.batch_tokens)
    elif config.epochs is not None:
        steps = max(1, round(config.epochs * text_tokens / config.batch_tokens))
    elif config.flops is not None:
        steps = max(1, int(config.flops / (flops_per_token * config.batch_tokens)))
    return plan(
        config,
        flops_per_token,
        title="pretrain",
        steps=steps,
        default_minutes=DEFAULT_MINUTES,
        micro_rows=max(1, config.micro_batch_tokens // config.context),
        learning_rates=LearningRates(
            config.matrix_learning_rate, config.embedding_learning_rate, config.head_learning_rate
        ),
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        cooldown=config.cooldown,
        rounded_from=ROUNDED_FROM,
        bytes_per_token=bytes_per_token if objective.continues_text else None,
        track=config.track,
    )
