"""The pre-training stage: token shards in, a model folder out."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from groundup.errors import UserError
from groundup.model.config import ModelConfig
from groundup.model.initialise import initialise
from groundup.model.language_model import LanguageModel
from groundup.model.presets import build_config
from groundup.storage import write_json
from groundup.tokens.batches import PackedDocuments
from groundup.tokens.shards import Shards
from groundup.tokens.tokenizer import Tokenizer
from groundup.train.checkpoint import remove_checkpoint
from groundup.train.config import PretrainConfig
from groundup.train.heldout import heldout_loss
from groundup.train.loop import train
from groundup.train.optim import LearningRates
from groundup.train.outcome import SAMPLES_FILE, Samples, save_trained, summarise, write_speed
from groundup.train.parallel import join_ranks
from groundup.train.plan import LoopConfig, check_split, plan
from groundup.train.pseudo_likelihood import pseudo_figures

DEFAULT_MINUTES = 5.0
# Windows of held-out text looked at on the way; the whole of it is scored once, at the end.
WATCHED_WINDOWS = 48


def run(config: PretrainConfig, out: Path, *, tokens: Path, tokenizer: Path) -> None:
    """Train a decoder from random weights on `tokens/train`, watching `tokens/heldout`.

    Writes a Hugging Face model folder, `metrics.jsonl`, `timings.jsonl`, `samples.jsonl` ({step, prompt, text}) and
    `summary.json` (the keys of `outcome.summarise`, held-out bits per byte, epochs, learning rates). Goes on from a
    checkpoint found in `out`.
    """
    ranks = join_ranks()
    shards, heldout = Shards.open(tokens / "train"), Shards.open(tokens / "heldout")
    shards.check_tokenizer(tokenizer)
    if heldout.total_tokens == 0:
        raise UserError(f"{tokens / 'heldout'}: no text to score the model on; hold out at least one document")
    words = Tokenizer.load(tokenizer)
    model = build_model(config, words.vocab_size)
    try:
        source = PackedDocuments(shards, config.context, words.bos_id, config.seed)
    except ValueError as error:
        raise UserError(f"{tokens / 'train'}: {error}") from None
    loop = loop_config(config, model.config, shards.total_tokens, shards.total_bytes / shards.total_tokens)
    check_split(loop.rows_per_step, loop.micro_rows, ranks.count)
    prompts = {prompt: [words.bos_id, *words.encode(prompt)] for prompt in config.sample_prompts}
    samples = Samples(out / SAMPLES_FILE, model, words, prompts)

    def watch(step: int) -> Mapping[str, float]:
        model.eval()
        loss = heldout_loss(model, heldout, config.context, words.bos_id, windows=WATCHED_WINDOWS)
        if ranks.leads:
            samples.take(step)
        model.train()
        return {"heldout_bits_per_byte": loss.bits_per_byte}

    result = train(model, source, loop, out, watch, ranks)
    if not ranks.leads:
        return
    final = heldout_loss(model.eval(), heldout, config.context, words.bos_id)
    save_trained(model, words, tokenizer, out)
    figures = {
        "heldout_bits_per_byte": final.bits_per_byte,
        "epochs": round(result.tokens / shards.total_tokens, 3),
        "learning_rates": asdict(loop.learning_rates),
    }
    figures |= pseudo_figures(model, heldout, config.context, words)
    write_json(out / "summary.json", summarise(model, config.context, loop, result) | figures)
    write_speed(out, loop, result)
    remove_checkpoint(out)


def build_model(config: PretrainConfig, vocab_size: int) -> LanguageModel:
    """A freshly initialised model of the configured shape."""
    try:
        shape = build_config(config.preset, config.depth, vocab_size, config.context, config.width, config.head_dim)
    except ValueError as error:
        raise UserError(f"[pretrain]: {error}") from None
    model = LanguageModel(shape)
    initialise(model, config.seed)
    return model


def loop_config(config: PretrainConfig, shape: ModelConfig, text_tokens: int, bytes_per_token: float) -> LoopConfig:
    """The loop's settings; a budget in epochs, tokens or FLOPs becomes a number of steps here."""
    steps = None
    if config.tokens is not None:
        steps = max(1, config.tokens // config.batch_tokens)
    elif config.epochs is not None:
        steps = max(1, round(config.epochs * text_tokens / config.batch_tokens))
    elif config.flops is not None:
        steps = max(1, int(config.flops / (shape.training_flops_per_token(config.context) * config.batch_tokens)))
    return plan(
        config,
        shape,
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
        bytes_per_token=bytes_per_token,
        track=config.track,
    )
