"""One dataclass gives TOML keys, flags and documentation."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from groundup.errors import UserError
from groundup.settings import add_flags, read_flags, read_table, setting, write_table


@dataclass(frozen=True)
class Config:
    vocab_size: int = setting(4096, "number of tokens")
    rate: float = setting(0.5, "a rate")
    kind: Literal["plain", "fancy"] = setting("plain", "which kind")
    shuffled: bool = setting(False, "whether in disorder")
    folder: Path = setting(Path("here"), "where")
    paths: tuple[str, ...] = setting((), "sources")
    minutes: float | None = setting(2.0, "budget in minutes", one_of="budget")
    tokens: int | None = setting(None, "budget in tokens", one_of="budget")

    def __post_init__(self) -> None:
        if self.vocab_size < 1:
            raise ValueError(f"`vocab_size` must be positive, not {self.vocab_size}")


def _from_words(*words: str, base: dict[str, object] | None = None, prefix: str = "") -> Config:
    parser = argparse.ArgumentParser()
    add_flags(parser, Config, prefix)
    return read_flags(Config, parser.parse_args(words), base or {}, prefix)


def test_table_and_flags_give_the_same_config():
    table = {"vocab_size": 300, "rate": 1, "kind": "fancy", "shuffled": True, "folder": "x", "paths": ["a", "b"]}
    words = "--vocab-size 300 --rate 1 --kind fancy --shuffled true --folder x --paths a b".split()
    expected = Config(300, 1.0, "fancy", True, Path("x"), ("a", "b"))
    assert read_table(Config, table, "t") == expected
    assert _from_words(*words) == expected
    assert isinstance(read_table(Config, table, "t").rate, float)


def test_a_table_can_be_written_and_read_back():
    config = Config(paths=("a",), folder=Path("x/y"), minutes=None)
    assert read_table(Config, write_table(config), "t") == config


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"vocab_sise": 1}, "t: unknown key `vocab_sise`, did you mean `vocab_size`"),
        ({"vocab_size": "many"}, "t: `vocab_size` must be integer, not 'many'"),
        ({"vocab_size": 1.5}, "t: `vocab_size` must be integer"),
        ({"vocab_size": True}, "t: `vocab_size` must be integer"),
        ({"rate": "fast"}, "t: `rate` must be number"),
        ({"kind": "other"}, "t: `kind` must be plain|fancy, not 'other'"),
        ({"shuffled": "yes"}, "t: `shuffled` must be true|false"),
        ({"paths": "a"}, "t: `paths` must be a list of text, not 'a'"),
        ({"paths": ["a", 3]}, "t: `paths`[1] must be text, not 3"),
        ({"vocab_size": 0}, "t: `vocab_size` must be positive, not 0"),
    ],
)
def test_what_does_not_fit_is_named_with_what_would(table: dict[str, object], sentence: str):
    with pytest.raises(UserError) as raised:
        read_table(Config, table, "t")
    assert str(raised.value).startswith(sentence)


@pytest.mark.parametrize("word", ["many", "1.5", "1.5e0", "nan", "inf"])
def test_a_flag_that_does_not_fit_is_named(word: str):
    with pytest.raises(UserError, match="--vocab-size must be integer"):
        _from_words("--vocab-size", word)


def test_whole_numbers_may_be_written_with_an_exponent():
    assert _from_words("--tokens", "3e6").tokens == 3_000_000


def test_flags_stand_over_the_table_and_leave_the_rest():
    assert _from_words("--rate", "2", base={"rate": 1.0, "vocab_size": 7}) == Config(vocab_size=7, rate=2.0)


def test_underscores_and_prefixes_are_accepted():
    assert _from_words("--vocab_size", "7").vocab_size == 7
    assert _from_words("--tok.vocab-size", "7", prefix="tok.").vocab_size == 7


def test_setting_one_budget_unsets_the_other():
    assert read_table(Config, {"tokens": 5}, "t").minutes is None
    assert read_table(Config, {}, "t").minutes == 2.0
    over_recipe = _from_words("--minutes", "3", base={"tokens": 5})
    assert (over_recipe.minutes, over_recipe.tokens) == (3.0, None)
    over_remembered = _from_words("--tokens", "9", base=write_table(Config(minutes=4.0)))
    assert (over_remembered.minutes, over_remembered.tokens) == (None, 9)


def test_the_help_of_a_flag_shows_its_default(capsys: pytest.CaptureFixture[str]):
    parser = argparse.ArgumentParser()
    add_flags(parser, Config)
    parser.print_help()
    assert "number of tokens (default: 4096)" in capsys.readouterr().out
