"""The evaluation stage: what the models of a run know, beside baselines, each figure with its uncertainty."""

from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from groundup.assist.chat import load_assistant
from groundup.assist.replies import reply_to_all
from groundup.engine.sampling import Sampling
from groundup.errors import UserError
from groundup.evaluate.baselines import baseline_bits_per_byte
from groundup.evaluate.config import EvaluateConfig
from groundup.evaluate.likelihood import score_heldout, score_pseudo_likelihood
from groundup.evaluate.tasks import Answered, Message, ask, choose_questions, read_questions, score_answers
from groundup.record.metrics import Progress
from groundup.storage import write_json
from groundup.tokens.sample import sample_text, text_of
from groundup.tokens.shards import Shards
from groundup.tokens.tokenizer import Tokenizer

CHAT_MODEL = "sft"


def run(
    config: EvaluateConfig, out: Path, *, corpus: Path, tokens: Path, pretrain: Path, sft: Path | None = None
) -> None:
    """Score the base model on held-out text and the chat model, if there is one, on held-out questions.

    Writes `scores.json` (`heldout`: bytes of the text that was scored, and of all that was held out; `bits_per_byte`:
    rows of name, value, bytes, how; `hidden_text`, of models that do not continue text: rows of name, value,
    unigram_entropy, targets, how; `pseudo_bits_per_byte`, of models that read both ways: see
    `pseudo_likelihood_scores`; and, with a chat model, the keys of `tasks.score_answers`) and `summary.json` with the
    same scores; with a chat model also `answers.parquet` with every question, reference and answer.
    """
    models = {"model": pretrain} if sft is None else {"model": pretrain, "chat model": sft}
    scores: dict[str, Any] = likelihood_scores(config, corpus, tokens, models)
    if pseudo := pseudo_likelihood_scores(config, tokens, models):
        scores["pseudo_bits_per_byte"] = list(pseudo.values())
    if sft is not None:
        answered = answer_questions(config, sft)
        scores |= score_answers(answered, CHAT_MODEL)
        table = pa.Table.from_pylist([one.row() for one in answered])
        pq.write_table(table, out / "answers.parquet", compression="zstd")
    write_json(out / "scores.json", scores)
    write_json(out / "summary.json", scores)


def likelihood_scores(config: EvaluateConfig, corpus: Path, tokens: Path, models: dict[str, Path]) -> dict[str, Any]:
    """Held-out bits per byte of models and baselines, on the same bytes, best first; the loss of models that guess.

    The bytes are those of `sample_text`, a part of a document being read as a text of its own by all of them.
    """
    shards, words = Shards.open(tokens / "heldout"), Tokenizer.load(next(iter(models.values())))
    heldout = sample_text(shards, words, config.heldout_megabytes)
    rows, hidden = [], []
    windows = -(-heldout.total_tokens // config.context)
    with Progress("evaluate: held-out text", len(models) * windows, "windows") as progress:
        for name, folder in models.items():
            objective, loss = score_heldout(
                folder, tokens / "heldout", config.context, config.heldout_megabytes, progress.advance
            )
            if objective.continues_text:
                how = f"windows of {config.context} tokens, each predicted once from its window alone"
                rows.append({"name": name, "value": loss.bits_per_byte, "bytes": loss.bytes, "how": how})
            else:
                how = f"{objective.name}, the same ones in each window of {config.context} tokens"
                figures = {"value": loss.per_target, "unigram_entropy": loss.unigram_entropy, "targets": loss.tokens}
                hidden.append({"name": name, **figures, "how": how})
    rows += baseline_rows(config, corpus, text_of(heldout, words))
    scores: dict[str, Any] = {
        "heldout": {"bytes": heldout.total_bytes, "of_bytes": shards.total_bytes},
        "bits_per_byte": sorted(rows, key=lambda row: float(row["value"])),
    }
    return scores | ({"hidden_text": hidden} if hidden else {})


def baseline_rows(config: EvaluateConfig, corpus: Path, heldout: Sequence[bytes]) -> list[dict[str, Any]]:
    """The same of what is no model, on these texts."""
    size = sum(map(len, heldout))
    with Progress("evaluate: baselines", 1, "pass") as progress:
        scores = baseline_bits_per_byte(read_texts(corpus / "train.parquet"), heldout, config.ngram_order)
        progress.advance()
    return [{"name": one.name, "value": one.bits_per_byte, "bytes": size, "how": one.how} for one in scores]


def pseudo_likelihood_scores(
    config: EvaluateConfig, tokens: Path, models: dict[str, Path]
) -> dict[str, dict[str, Any]]:
    """By name, the models that read both ways: name, value, low and high (a 95 % interval), how.

    Not to be compared with bits per byte: here a token is guessed from what comes after it too.
    """
    rows = {}
    for name, folder in models.items():
        loss = score_pseudo_likelihood(folder, tokens / "heldout", config.context, config.masked_tokens)
        if loss is not None:
            margin = NormalDist().inv_cdf(0.975) * loss.standard_error
            rows[name] = {
                "name": f"{name}, pseudo-likelihood of {loss.tokens:,} sampled tokens",
                "value": loss.pseudo_bits_per_byte,
                "low": loss.pseudo_bits_per_byte - margin,
                "high": loss.pseudo_bits_per_byte + margin,
                "how": f"{loss.tokens:,} of {loss.total_tokens:,} tokens, spread evenly, masked one at a time, guessed "
                f"from both sides in windows of {config.context} tokens",
            }
    return rows


def answer_questions(config: EvaluateConfig, folder: Path) -> list[Answered]:
    """The held-out questions of a chat model's own conversations, put to it greedily."""
    questions = choose_questions(read_questions(folder / "conversations.parquet"), config.questions)
    if not questions:
        return []
    engine = load_assistant(folder)
    sampling = Sampling(max_tokens=config.answer_tokens)
    with Progress("evaluate: questions", len(questions), "questions") as progress:

        def answer(conversations: Sequence[Sequence[Message]]) -> list[str]:
            return reply_to_all(engine, conversations, sampling, progress.advance)

        return ask(questions, answer)


def read_texts(path: Path) -> list[bytes]:
    """The texts of a documents file, in UTF-8."""
    try:
        texts = [text.encode() for text in pq.read_table(path, columns=["text"]).column("text").to_pylist()]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: expected documents as the corpus stage writes them: {error}") from None
    return texts
