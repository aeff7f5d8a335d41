"""The terminal chat: reads lines, prints answers as they come, obeys commands that begin with `/`."""

import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from groundup.assist.chat import Event, Text, ToolCall, ToolResult, messages_of, stream_reply
from groundup.engine.engine import Engine
from groundup.engine.sampling import Sampling
from groundup.errors import UserError
from groundup.record.metrics import is_silent
from groundup.storage import write_atomically, write_json
from groundup.tokens.chat import Message

HELP = """\
  /document FILE    give the assistant a text to answer from
  /system TEXT      say what the assistant should be like
  /temperature T    0 takes the likeliest words, 1 draws freely
  /clear            forget the conversation and its documents
  /save FILE        write the conversation as JSON
  /quit             end (also Ctrl-D); Ctrl-C stops an answer"""

_HISTORY_LINES = 1000


class Conversation:
    """What was said so far, and how the next answer is to be made."""

    def __init__(self, engine: Engine, sampling: Sampling, adapter: str | None = None) -> None:
        self.messages: list[Message] = []
        self._engine = engine
        self._sampling, self._adapter = sampling, adapter
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: print(HELP),
            "/clear": lambda _: self.messages.clear(),
            "/document": self._add_document,
            "/system": self._set_system,
            "/temperature": self._set_temperature,
            "/save": self._save,
        }

    def run(self, title: str) -> None:
        """Talk until the input ends.

        Without a terminal the input is a script: its lines are shown before their answers, so that the output reads as
        a conversation, and it ends at the first command that cannot be obeyed.
        """
        is_terminal = sys.stdin.isatty()
        # Ctrl-C has another meaning here: it stops an answer, any number of times.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if is_terminal:
            _use_line_editing()
            print(f"{title}: type a message, /help for the commands, /quit to end.")
        while True:
            try:
                line = input("> " if is_terminal else "").strip()
                if line and not is_terminal and not is_silent():
                    print(f"> {line}")
            except EOFError:
                return
            except KeyboardInterrupt:
                print("\n(/quit or Ctrl-D ends the chat)")
                continue
            if line == "/quit":
                return
            try:
                self.obey(line) if line.startswith("/") else self.answer(line)
            except UserError as error:
                if not is_terminal:
                    raise
                print(f"groundup: {error}")

    def obey(self, line: str) -> None:
        """Carry out one command. Raises UserError for one that does not exist or cannot be carried out."""
        name, _, argument = line.partition(" ")
        if name not in self._commands:
            raise UserError(f"no command `{name}`; /help lists the commands")
        self._commands[name](argument.strip())

    def answer(self, question: str) -> None:
        """Print the reply to `question` while it is written, and remember both; nothing for an empty line."""
        if not question:
            return
        asked: list[Message] = [*self.messages, {"role": "user", "content": question}]
        events: list[Event] = []
        try:
            for event in stream_reply(self._engine, asked, self._sampling, self._adapter):
                events.append(event)
                _show(event)
        except KeyboardInterrupt:
            print(" [stopped]", end="")
        print(flush=True)
        self.messages = [*asked, *messages_of(events)]

    def _add_document(self, name: str) -> None:
        path = Path(name).expanduser()
        try:
            text = path.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; /document takes the path of a text file") from None
        ids = self._engine.tokenizer.encode(text)
        # Half of what the model can read, so that question and answer have room beside it.
        limit = self._engine.max_positions // 2
        if len(ids) > limit:
            text = self._engine.tokenizer.decode(ids[:limit]).rstrip("\ufffd")
            print(f"(of {path.name} the first {limit} of {len(ids)} tokens are used: this model reads no more at once)")
        self.messages.append({"role": "document", "content": text})

    def _set_system(self, text: str) -> None:
        others = [message for message in self.messages if message["role"] != "system"]
        self.messages = [{"role": "system", "content": text}, *others] if text else others

    def _set_temperature(self, number: str) -> None:
        try:
            self._sampling = replace(self._sampling, temperature=float(number))
        except ValueError:
            raise UserError(f"/temperature takes a number from 0 up, not `{number}`") from None

    def _save(self, name: str) -> None:
        if not name:
            raise UserError("/save takes the path of a file")
        path = Path(name).expanduser()
        try:
            write_json(path, self.messages)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        print(f"({len(self.messages)} messages in {path})")


def _show(event: Event) -> None:
    match event:
        case Text(text):
            shown = printable(text)
        case ToolCall(expression):
            shown = f"[calculator: {printable(expression)}"
        case ToolResult(result):
            shown = f" = {result}] "
    sys.stdout.write(shown)
    sys.stdout.flush()


def printable(text: str) -> str:
    """The text without control characters: what a model writes must not steer the terminal."""
    return "".join(letter if letter in "\n\t" or letter.isprintable() else "\ufffd" for letter in text)


def _use_line_editing() -> None:
    """Arrow keys, and a history that outlives the chat, where Python was built with readline."""
    if importlib.util.find_spec("readline") is None:
        return
    import atexit
    import readline

    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    history = state / "groundup" / "chat_history"
    if history.exists():
        readline.read_history_file(history)
    readline.set_history_length(_HISTORY_LINES)

    def keep() -> None:
        history.parent.mkdir(parents=True, exist_ok=True)
        lines = (readline.get_history_item(index + 1) for index in range(readline.get_current_history_length()))
        write_atomically(history, "".join(f"{line}\n" for line in list(lines)[-_HISTORY_LINES:]))

    atexit.register(keep)
