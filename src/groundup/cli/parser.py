"""The parser: every verb with its flags, and errors that say what would have been right."""

import argparse
import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from groundup import __version__
from groundup.errors import UserError

DESCRIPTION = """\
Build your own language model from raw text up: clean a corpus, train a tokenizer and a model,
teach it to chat, measure it, and see in one report what it was made of and what that cost."""

START = """\
start here:
  groundup run pocket              a small assistant for Python, from the standard library's own text
  groundup chat runs/pocket        talk to it
  groundup run stories --corpus.paths my-texts/    the same with texts of your own

Every verb explains itself: groundup VERB --help. A run that was interrupted goes on when run again."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors, and whose flags cannot be abbreviated by accident."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("formatter_class", Formatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(*args, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` shows what is accepted")


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Shows each flag once, though the spelling with underscores is accepted too, and leaves long ones their line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        spellings = [name for name in action.option_strings if "_" not in name]
        if not spellings or action.nargs == 0:
            return ", ".join(spellings) or super()._format_action_invocation(action)
        return f"{', '.join(spellings)} {self._format_args(action, self._get_default_metavar_for_optional(action))}"


class Verbs:
    """Adds verbs to the parser, each with the flags that all verbs share."""

    def __init__(self, subparsers: "argparse._SubParsersAction[Parser]") -> None:
        self._subparsers = subparsers

    def add(
        self,
        name: str,
        summary: str,
        handler: Callable[[argparse.Namespace], None],
        usage: str,
        about: str = "",
        after: str = "",
        resumes: bool = False,
    ) -> Parser:
        """about: what the verb does, in full. after: examples and what comes next, shown below the flags.

        resumes: the same command goes on where it was interrupted.
        """
        parser = self._subparsers.add_parser(
            name, help=summary, usage=f"groundup {name} {usage}", description=about or summary, epilog=after
        )
        parser.set_defaults(handler=handler, resumes=resumes)
        _add_shared(parser)
        return parser


def _add_shared(parser: Parser) -> None:
    """Flags that may stand before the verb or after it; without a default, so that neither place undoes the other."""
    shared = parser.add_argument_group("flags of every verb")
    unset = argparse.SUPPRESS
    shared.add_argument("--quiet", action="store_true", default=unset, help="say nothing but results and errors")
    shared.add_argument("--threads", type=int, default=unset, metavar="COUNT", help="processor threads (default: all)")


def build_parser() -> Parser:
    """The whole command line."""
    from groundup.cli import benching, exporting, looking, quantizing, running, talking

    parser = Parser(prog="groundup", usage="groundup VERB [flags]", description=DESCRIPTION, epilog=START)
    parser.add_argument("--version", action="version", version=f"groundup {__version__}", help="print the version")
    parser.set_defaults(quiet=False, threads=None)
    _add_shared(parser)
    verbs = Verbs(parser.add_subparsers(prog="groundup", title="verbs", metavar="VERB", dest="verb", required=True))
    running.add_verbs(verbs)
    talking.add_verbs(verbs)
    quantizing.add_verbs(verbs)
    benching.add_verbs(verbs)
    exporting.add_verbs(verbs)
    looking.add_verbs(verbs)
    return parser


def parse(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """The flags of one command. Raises UserError, with a suggestion, for a verb or a flag that does not exist."""
    subparsers = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    verb = argv[0]
    if not verb.startswith("-") and verb not in subparsers.choices:
        raise UserError(f"no verb `{verb}`{_suggest(verb, list(subparsers.choices))}; `groundup --help` lists them")
    flags, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [spelling for action in subparsers.choices[flags.verb]._actions for spelling in action.option_strings]
        what = "flag" if unknown[0].startswith("-") else "argument"
        raise UserError(
            f"unknown {what} {unknown[0]}{_suggest(unknown[0].partition('=')[0], known)}; "
            f"`groundup {flags.verb} --help` shows what is accepted"
        )
    return flags


def every_action(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All flags and arguments of all verbs."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield from every_action(verb)


def _suggest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f", did you mean {close[0]}" if close else ""
