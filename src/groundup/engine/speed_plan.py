"""What an engine is asked when its speed is measured. Apart from `speed.py`, so that its flags load no library."""

from dataclasses import dataclass, replace

from groundup.errors import UserError
from groundup.settings import setting

USUAL_PROMPT_TOKENS = 512
# A single token has no next one whose coming could be waited for.
_LEAST = {"prompt_tokens": 1, "new_tokens": 2, "repeats": 1}


@dataclass(frozen=True)
class Plan:
    """The texts of one measurement. Raises ValueError, naming it, for a number from which nothing can be measured."""

    prompt_tokens: int | None = setting(
        None, f"of each prompt (default: {USUAL_PROMPT_TOKENS}, or as many as the model has room for)"
    )
    new_tokens: int = setting(64, "of each answer")
    streams: tuple[int, ...] = setting((1, 4, 16), "how many texts at a time; each number is measured by itself")
    repeats: int = setting(3, "of each measurement")

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`{name}` must be at least {least}, not {value}")
        if not self.streams or min(self.streams) < 1:
            raise ValueError(f"`streams` must be one or more numbers of at least 1, not {list(self.streams)}")

    @property
    def prompt_length(self) -> int:
        """Tokens of each prompt."""
        return USUAL_PROMPT_TOKENS if self.prompt_tokens is None else self.prompt_tokens

    @property
    def tokens(self) -> int:
        """All that are computed, prompts and answers."""
        texts = sum(self.streams) * (self.prompt_length + self.new_tokens)
        return self.repeats * (texts + self.prompt_length + 1)

    def within(self, most_positions: int) -> "Plan":
        """The same for a model of this length: prompts that nobody chose are made to fit.

        Raises UserError where the texts are too long for it.
        """
        room = most_positions - self.new_tokens
        if room < (self.prompt_tokens or 1):
            asked = f"{self.prompt_tokens or 1} tokens of a prompt and {self.new_tokens} new ones"
            raise UserError(f"this model holds texts of {most_positions} tokens, which has no room for {asked}")
        return replace(self, prompt_tokens=min(self.prompt_length, room))
