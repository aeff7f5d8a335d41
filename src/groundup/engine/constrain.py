"""Text that must have a form: a JSON schema, a regular expression, a grammar, or one of several choices.

The forms are compiled and followed by `llguidance` (the extra `constrain`), which says token by token what may come
next: one bit for each token of the vocabulary. Control tokens are never among them, but for those that end the text,
where it may end.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from reprlib import repr as shortened
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from groundup.engine.filters import Floats
from groundup.engine.prompts import listed_ids
from groundup.errors import UserError
from groundup.tokens.text import TextTokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

# The schemas that are no objects, and objects that say the same: the library reads no others.
_AS_OBJECTS = {"true": "{}", "false": '{"enum": []}'}
# Between the parts of a JSON text: nothing, a blank, or a line break with indentation. Without a bound, a small model
# can write blanks for ever, which every schema allows.
_JSON_SPACE = r"[ ]?|\n[ \t]{0,20}"

Bits = npt.NDArray[np.uint8]
# What each byte of a mask adds to the logits of its eight tokens, the lowest bit first: 0 or -inf.
_ADDED_BY_BITS = np.where(np.arange(256)[:, None] >> np.arange(8) & 1, 0.0, -np.inf).astype(np.float32)


class GrammarCompiler:
    """Makes constraints for the texts of one tokenizer; the vocabulary is prepared once.

    end_ids: the control tokens that may end a text, by default the tokenizer's `end_ids`.
    Raises UserError where `llguidance` is not installed, ValueError for another kind of tokenizer and where one of
    `end_ids` is no control token.
    """

    def __init__(self, tokenizer: TextTokenizer, end_ids: Sequence[int] | None = None) -> None:
        try:
            import llguidance
        except ModuleNotFoundError:
            raise UserError(
                "constrained decoding needs llguidance; pip install 'groundup[constrain]' brings it"
            ) from None
        if not isinstance(tokenizer, TextTokenizer):
            raise ValueError(f"`tokenizer` must be a `Tokenizer`, not {shortened(tokenizer)}")
        self.end_ids = tokenizer.end_ids if end_ids is None else tuple(listed_ids(end_ids, "`end_ids`"))
        if not self.end_ids or any(tokenizer.control_name(index) is None for index in self.end_ids):
            raise ValueError(f"`end_ids` must be one or more control tokens of the tokenizer, not {self.end_ids}")
        vocabulary = _Vocabulary(tokenizer, self.end_ids)
        self._library = llguidance
        self._tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(vocabulary), eos_token=list(self.end_ids))
        self._vocab_size = tokenizer.vocab_size
        self._usable = np.packbits([len(piece) > 0 for piece in vocabulary.tokens], bitorder="little")

    def json_schema(self, schema: Mapping[str, Any] | str | bool) -> "Constraint":
        """JSON that the schema describes. Raises UserError for one that is not understood or that nothing meets."""
        if not isinstance(schema, Mapping | str | bool):
            raise UserError(f"a JSON schema must be a mapping, true, false, or their text, not {shortened(schema)}")
        try:
            text = schema if isinstance(schema, str) else json.dumps(schema)
            grammar = self._library.LLMatcher.grammar_from_json_schema(
                _AS_OBJECTS.get(text.strip(), text), defaults={"whitespace_pattern": _JSON_SPACE}
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"the JSON schema cannot be read: {error}") from None
        return self._compile("JSON schema", grammar)

    def regex(self, pattern: str) -> "Constraint":
        """All of the text matches the pattern, in Rust's syntax (no look-around, no back-references)."""
        _require_text("regular expression", pattern)
        return self._compile("regular expression", self._library.LLMatcher.grammar_from_regex(pattern))

    def lark(self, grammar: str) -> "Constraint":
        """The text is a `start` of the grammar, in llguidance's variant of Lark."""
        _require_text("grammar", grammar)
        return self._compile("grammar", self._library.LLMatcher.grammar_from_lark(grammar))

    def choices(self, texts: Iterable[str]) -> "Constraint":
        """One of the texts."""
        listed = [] if isinstance(texts, str) or not isinstance(texts, Iterable) else list(texts)
        if not listed or not all(isinstance(text, str) and text for text in listed):
            raise UserError(f"choices must be a list of texts that are not empty, not {texts!r}")
        # Every character by its number: nothing that a text holds can then mean anything in a pattern.
        spelled = ("".join(f"\\x{{{ord(character):x}}}" for character in text) for text in listed)
        return self._compile("list of choices", self._library.LLMatcher.grammar_from_regex("|".join(spelled)))

    def _compile(self, kind: str, grammar: str) -> "Constraint":
        limits = self._library.LLParserLimits(verbose_errors=False)
        matcher = self._library.LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise UserError(f"the {kind} cannot be compiled: {_reason(matcher)}")
        constraint = Constraint(matcher, self.end_ids, self._usable, self._vocab_size)
        try:
            is_empty = not constraint.allowed().any()
        except ValueError as error:
            raise UserError(f"the {kind} cannot be followed: {error}") from None
        if is_empty:
            raise UserError(f"the {kind} cannot be followed: no text of ordinary tokens meets it")
        return constraint


class Constraint:
    """What may follow in one text. Made by `GrammarCompiler`; its use changes it, so each text needs a fork.

    Where the form leaves one way to go on, only the token with which the tokenizer itself would begin it may come next.

    end_ids: the tokens that end the text. has_ended: whether the last token is one of them; then none may come next.
    """

    def __init__(
        self, matcher: "LLMatcher", end_ids: tuple[int, ...], usable: Bits, vocab_size: int, has_ended: bool = False
    ) -> None:
        self.end_ids = end_ids
        self.has_ended = has_ended
        self._matcher = matcher
        self._usable = usable
        self._vocab_size = vocab_size

    @property
    def may_end(self) -> bool:
        """Whether the text so far is whole."""
        return bool(self._matcher.is_accepting())

    @property
    def must_end(self) -> bool:
        """Whether the text is whole and cannot go on."""
        return self.may_end and bool(self._matcher.is_stopped())

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Which tokens may come next: (tokens of the tokenizer,).

        Raises ValueError where the library gives up, for instance because the grammar is too ambiguous.
        """
        return np.unpackbits(self._bits(), count=self._vocab_size, bitorder="little").view(np.bool_)

    def require_vocabulary(self, vocab_size: int) -> None:
        """Raises ValueError where a model has fewer tokens than the tokenizer; it can have more."""
        if vocab_size < self._vocab_size:
            raise ValueError(
                f"the constraint is for a tokenizer of {self._vocab_size} tokens, but the model has only {vocab_size}; "
                "make it with the model's own tokenizer"
            )

    def restrict(self, logits_v: Floats) -> None:
        """Write -inf over the logits of what may not come next. Raises ValueError as `allowed` does."""
        tokens = self._vocab_size
        self.require_vocabulary(len(logits_v))
        logits_v[:tokens] += np.take(_ADDED_BY_BITS, self._bits(), axis=0).reshape(-1)[:tokens]
        logits_v[tokens:] = -np.inf

    def accept(self, token: int) -> None:
        """The text goes on with `token`. Raises ValueError where that may not come next; nothing has changed then."""
        is_end = token in self.end_ids
        is_usable = 0 <= token < self._vocab_size and self._usable[token // 8] >> (token % 8) & 1
        if self.has_ended or not (self.may_end if is_end else is_usable and self._consume(token)):
            raise ValueError(f"token id {token} cannot follow here: the constraint forbids it")
        self.has_ended = is_end

    def undo(self, count: int) -> None:
        """Take back the last `count` tokens. Raises ValueError where there are not as many."""
        # The library has not read the end, which is ours to keep.
        read = count - 1 if self.has_ended and count else count
        if read and not self._matcher.rollback(read):
            raise ValueError(f"the constraint cannot take back {count} tokens: {_reason(self._matcher)}")
        self.has_ended = self.has_ended and count == 0

    def fork(self) -> "Constraint":
        """Another one that goes on from here."""
        return Constraint(self._matcher.deep_copy(), self.end_ids, self._usable, self._vocab_size, self.has_ended)

    def _consume(self, token: int) -> bool:
        return bool(self._matcher.try_consume_tokens([token]) == 1)

    def _bits(self) -> Bits:
        """What may come next, a bit for each token."""
        if self.has_ended:
            return np.zeros_like(self._usable)
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise ValueError(f"the constraint cannot be followed any further: {_reason(self._matcher)}")
        return bits[: len(self._usable)] & self._usable


class _Vocabulary:
    """A tokenizer as llguidance wants it: bytes per token, none for control tokens other than those of the end."""

    bos_token_id = None

    def __init__(self, tokenizer: TextTokenizer, end_ids: tuple[int, ...]) -> None:
        self._tokenizer = tokenizer
        self.tokens = [tokenizer.piece(index) for index in range(tokenizer.vocab_size)]
        for index in end_ids:
            self.tokens[index] = (tokenizer.control_name(index) or "").encode()
        self._index_of = {piece: index for index, piece in enumerate(self.tokens) if index not in end_ids}
        self._most_bytes = max(map(len, self.tokens))
        self.eos_token_id = end_ids[0]
        self.special_token_ids = list(end_ids)

    def __call__(self, text: str) -> list[int]:
        """Token ids of a text; llguidance tries bytes first, and takes the TypeError as an answer.

        They must spell the text as it stands. Where the tokenizer normalizes it, they are the longest that do.
        """
        ids, text_bytes = self._tokenizer.encode_behind(text), text.encode()
        return ids if b"".join(self.tokens[index] for index in ids) == text_bytes else self._longest(text_bytes)

    def _longest(self, text: bytes) -> list[int]:
        """Tokens for the bytes, from the left each as long as can be, up to a byte that none begins with."""
        ids: list[int] = []
        while text:
            lengths = range(min(len(text), self._most_bytes), 0, -1)
            length = next((length for length in lengths if text[:length] in self._index_of), None)
            if length is None:
                break
            ids.append(self._index_of[text[:length]])
            text = text[length:]
        return ids


def _require_text(kind: str, given: Any) -> None:
    """Raises UserError for what is no text, and for one that no UTF-8 can hold."""
    if not isinstance(given, str):
        raise UserError(f"the {kind} must be a text, not {shortened(given)}")
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the {kind} is not valid Unicode at character {error.start}") from None


def _reason(matcher: "LLMatcher") -> str:
    """What the library says is wrong, without the state of its parser."""
    message = matcher.get_error()
    for mark in ("<state>", "<backtrace>"):
        message = message.partition(mark)[0]
    return " ".join(message.split())
