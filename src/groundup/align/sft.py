"""The fine-tuning stage: a pre-trained model folder and the corpus's passages in, a chat model folder out."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from groundup.align.config import SftConfig
from groundup.align.conversations import Conversation, Split, build_conversations, write_conversations
from groundup.errors import UserError
from groundup.formats.huggingface import load_decoder
from groundup.model.language_model import LanguageModel
from groundup.quantize.convert import require_floating
from groundup.storage import write_json
from groundup.tokens.chat import render
from groundup.tokens.conversations import PackedConversations, TokenisedConversation
from groundup.tokens.tokenizer import Tokenizer
from groundup.train.balance import published_balance
from groundup.train.checkpoint import remove_checkpoint
from groundup.train.heldout import mean_target_loss
from groundup.train.learner import Learner
from groundup.train.loop import train
from groundup.train.optim import LearningRates
from groundup.train.outcome import SAMPLES_FILE, Samples, save_trained, served_in, summarise, write_speed
from groundup.train.parallel import join_ranks
from groundup.train.plan import LoopConfig, check_split, plan

DEFAULT_MINUTES = 2.0
CONVERSATIONS_FILE = "conversations.parquet"
SPLITS: tuple[Split, ...] = ("train", "heldout")
# Held-out rows looked at on the way.
WATCHED_ROWS = 16
# Held-out questions answered on the way, one of each kind of task.
WATCHED_MODES = ("with passage", "closed book", "calculator")


def run(config: SftConfig, out: Path, *, corpus: Path, pretrain: Path) -> None:
    """Fine-tune the model of folder `pretrain` on conversations about the passages of `corpus`.

    Writes a Hugging Face model folder, `conversations.parquet` (both splits), metrics and samples as pre-training does,
    and `summary.json` (the keys of `outcome.summarise`, and what the conversations consist of).
    """
    ranks = join_ranks()
    words = Tokenizer.load(pretrain)
    model = load_decoder(pretrain)
    require_floating(model, "trained")
    conversations = gather_conversations(config, corpus, words)
    train_split = [one.tokens for one in conversations["train"]]
    try:
        source = PackedConversations(train_split, config.context, words.pad_id, config.seed)
    except ValueError as error:
        raise UserError(f"{corpus}: {error}") from None
    loop = loop_config(config, model, source, pretrain)
    check_split(loop.rows_per_step, loop.micro_rows, ranks.count)
    watched = conversations["heldout"] or conversations["train"]
    heldout = PackedConversations([one.tokens for one in watched], config.context, words.pad_id, config.seed)
    samples = Samples(out / SAMPLES_FILE, model, words, sample_prompts([one.conversation for one in watched], words))

    def watch(step: int) -> Mapping[str, float]:
        if ranks.leads:
            samples.take(step)
        return {"heldout_loss": mean_target_loss(model, heldout, WATCHED_ROWS)}

    learner = Learner(model, published_balance(model), config.quantize)
    result = train(learner, source, loop, out, watch, ranks)
    if not ranks.leads:
        return
    with learner.as_served():
        final_loss = mean_target_loss(model, heldout, WATCHED_ROWS)
    save_trained(model, words, pretrain, out)
    written = [one.conversation for split in SPLITS for one in conversations[split]]
    write_conversations(out / CONVERSATIONS_FILE, written)
    composition = {
        "conversations": len(train_split),
        "heldout_conversations": len(conversations["heldout"]),
        "conversation_tokens": sum(len(one.ids) for one in train_split),
        "trained_tokens": source.trained_tokens,
        "kinds": dict(Counter(one.conversation.mode for one in conversations["train"]).most_common()),
        "heldout_loss": final_loss,
        **served_in(config.quantize, loop.title, result),
        "epochs": round(result.steps * loop.rows_per_step / source.rows_per_epoch, 3),
    }
    write_json(out / "summary.json", summarise(model, config.context, loop, result) | composition)
    write_speed(out, loop, result)
    remove_checkpoint(out)


class Prepared(NamedTuple):
    """A conversation and its tokens, with the loss mask of the chat renderer."""

    conversation: Conversation
    tokens: TokenisedConversation


def gather_conversations(config: SftConfig, corpus: Path, words: Tokenizer) -> dict[str, list[Prepared]]:
    """The conversations of each split that fit into a row."""
    path = corpus / "passages.parquet"
    try:
        passages = pq.read_table(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({error}); run the corpus stage again") from None
    return {
        split: [
            Prepared(conversation, TokenisedConversation(rendered.ids, rendered.trained))
            for conversation in build_conversations(passages, config, split)
            if len((rendered := render(words, conversation.messages)).ids) - 1 <= config.context
        ]
        for split in SPLITS
    }


def loop_config(config: SftConfig, model: LanguageModel, source: PackedConversations, pretrain: Path) -> LoopConfig:
    """The loop's settings; learning rates are a part of those the model was pre-trained with."""
    rows_per_step = config.batch_tokens // config.context
    steps = None
    if config.epochs is not None:
        steps = max(1, round(config.epochs * source.rows_per_epoch / rows_per_step))
    try:
        peak = json.loads((pretrain / "summary.json").read_text(encoding="utf-8"))["learning_rates"]
    except (FileNotFoundError, KeyError):
        raise UserError(
            f"{pretrain}/summary.json: no `learning_rates`; name a folder that `groundup pretrain` wrote"
        ) from None
    return plan(
        config,
        model.config.training_flops_per_token(config.context),
        title="sft",
        steps=steps,
        default_minutes=DEFAULT_MINUTES,
        micro_rows=rows_per_step,
        learning_rates=LearningRates(**{name: rate * config.learning_rate for name, rate in peak.items()}),
        weight_decay=0.0,
        warmup=0.0,
        cooldown=1.0,
        rounded_from=0.0,
        bytes_per_token=None,
    )


def sample_prompts(conversations: Sequence[Conversation], words: Tokenizer) -> dict[str, list[int]]:
    """One held-out question of each watched kind, rendered up to where the assistant answers: {question: tokens}."""
    prompts = {}
    for mode in WATCHED_MODES:
        for conversation in conversations:
            if conversation.mode == mode and conversation.messages[-1]["role"] == "assistant":
                asked = [index for index, one in enumerate(conversation.messages) if one["role"] == "user"][-1]
                messages = conversation.messages[: asked + 1]
                prompts[messages[-1]["content"]] = render(words, messages, add_generation_prompt=True).ids
                break
    return prompts
