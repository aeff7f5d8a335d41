"""The verbs that talk with a model: `chat` holds a conversation, `sample` goes on from a text."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from groundup.cli.parser import Parser, Verbs
from groundup.errors import UserError
from groundup.formats.folder import local_folder
from groundup.recipe.stages import STAGES

if TYPE_CHECKING:
    from groundup.engine.engine import Engine
    from groundup.engine.sampling import Sampling

CHAT_ABOUT = """\
Talk with a model in the terminal. Answers stream as they are written; the arrow keys edit the line and
bring back earlier ones; Ctrl-C stops an answer, Ctrl-D ends the chat, /help lists the commands.
When the input is no terminal, each of its lines is a message: printf 'What does json.dumps do?\\n' | groundup chat …"""

CHAT_AFTER = """\
examples:
  groundup chat runs/pocket
  groundup chat runs/pocket --document notes.txt       answer from a text of yours
  groundup chat path/to/model/folder --temperature 0.7
  groundup chat path/to/model/folder --adapter lora    with a LoRA adapter that PEFT saved
  groundup chat hf:org/name                            a model of the Hugging Face hub that groundup has trained"""

SAMPLE_AFTER = """\
examples:
  groundup sample runs/pocket --prompt "def main("
  groundup sample runs/pocket --prompt "import " --temperature 0        always the likeliest token
  groundup sample hf:org/name --prompt "Once upon"                      a published model of the Hugging Face hub"""


def add_verbs(verbs: Verbs) -> None:
    """Add `chat` and `sample`."""
    chat = verbs.add("chat", "talk with a model in the terminal", _chat, "RUN|MODEL [flags]", CHAT_ABOUT, CHAT_AFTER)
    chat.add_argument("model", type=Path, metavar="RUN|MODEL", help="run folder, model folder or hf:org/name")
    _add_adapter(chat)
    chat.add_argument("--system", metavar="TEXT", help="what the assistant should be like")
    chat.add_argument("--document", type=Path, metavar="FILE", help="a text to answer from")
    _add_sampling(chat, max_tokens=256, temperature=0.0)

    about = "Go on from a text. Of a run, the model before fine-tuning is used."
    sample = verbs.add("sample", "let a model go on from a text", _sample, "RUN|MODEL [flags]", about, SAMPLE_AFTER)
    sample.add_argument("model", type=Path, metavar="RUN|MODEL", help="run folder, model folder or hf:org/name")
    _add_adapter(sample)
    sample.add_argument("--prompt", default="", metavar="TEXT", help="the text to go on from (default: none)")
    _add_sampling(sample, max_tokens=200, temperature=0.8)


def find_model(path: Path, stage: str) -> Path:
    """The model folder that `path` is, or the one that `stage` made in the run folder `path`.

    `hf:org/name` is downloaded first. Raises UserError where there is no model, saying what makes one.
    """
    path = local_folder(path)
    if (path / "config.json").is_file():
        return path
    folder = path / next(each.folder for each in STAGES if each.name == stage)
    if folder.is_dir():
        return folder
    if path.is_file():
        made = f", which `groundup export {path} --to FOLDER` makes of it" if path.suffix == ".gguf" else ""
        raise UserError(f"{path} is a file; a model is a folder with config.json and model.safetensors{made}")
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder; `groundup run pocket` makes runs/pocket")
    others = [path / each.folder for each in STAGES if (path / each.folder / "config.json").is_file()]
    named = f", or name {others[-1]}" if others else ""
    raise UserError(f"{path} holds no model to use here: `groundup {stage} --out {path}` makes one{named}")


def _add_adapter(verb: Parser) -> None:
    verb.add_argument("--adapter", type=Path, metavar="FOLDER", help="a LoRA adapter for the model, as PEFT saves it")


def _with_adapter(engine: "Engine", folder: Path | None) -> str | None:
    """The name of the folder's adapter, which the engine then has."""
    if folder is None:
        return None
    engine.add_adapter(str(folder), folder)
    return str(folder)


def _add_sampling(verb: Parser, max_tokens: int, temperature: float) -> None:
    group = verb.add_argument_group("how tokens are chosen")
    group.add_argument("--max-tokens", type=int, default=max_tokens, metavar="N", help="(default: %(default)s)")
    group.add_argument(
        "--temperature", type=float, default=temperature, metavar="T", help="0: the likeliest (default: %(default)s)"
    )
    group.add_argument("--top-k", type=int, default=50, metavar="K", help="0: all tokens (default: %(default)s)")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="equal seeds give equal texts (default: 0)")


def _sampling(flags: argparse.Namespace) -> "Sampling":
    from groundup.engine.sampling import Sampling

    try:
        return Sampling(max_tokens=flags.max_tokens, temperature=flags.temperature, top_k=flags.top_k, seed=flags.seed)
    except ValueError as error:
        raise UserError(str(error)) from None


def _chat(flags: argparse.Namespace) -> None:
    folder = find_model(flags.model, "sft")
    from groundup.assist.chat import load_assistant
    from groundup.cli.conversation import Conversation

    sampling = _sampling(flags)
    engine = load_assistant(folder)
    conversation = Conversation(engine, sampling, _with_adapter(engine, flags.adapter))
    if flags.system:
        conversation.obey(f"/system {flags.system}")
    if flags.document:
        conversation.obey(f"/document {flags.document}")
    conversation.run(title=str(folder))


def _sample(flags: argparse.Namespace) -> None:
    folder = find_model(flags.model, "pretrain")
    from groundup.assist.chat import load_writer
    from groundup.cli.conversation import printable

    sampling = _sampling(flags)
    engine = load_writer(folder)
    try:
        prompt = engine.tokenizer.prompt(flags.prompt)
    except ValueError as error:
        raise UserError(f"--prompt: {error}") from None
    if not prompt:
        raise UserError("--prompt needs a text: no token stands before the texts of this model")
    _require_room(prompt, engine.max_positions)
    adapter = _with_adapter(engine, flags.adapter)
    print(flags.prompt, end="")
    for text in engine.stream(prompt, sampling, adapter=adapter):
        sys.stdout.write(printable(text))
        sys.stdout.flush()
    print()


def _require_room(prompt: Sequence[int], max_positions: int) -> None:
    if len(prompt) >= max_positions:
        raise UserError(f"--prompt has {len(prompt)} tokens and leaves no room: this model holds {max_positions}")
