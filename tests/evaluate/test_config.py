"""Settings of evaluation refuse what cannot be meant, naming the key."""

import pytest

from groundup.errors import UserError
from groundup.evaluate.config import EvaluateConfig
from groundup.settings import read_table


@pytest.mark.parametrize(
    ("key", "value"),
    [("questions", 0), ("context", -1), ("answer_tokens", 0), ("ngram_order", 8), ("masked_tokens", 0)],
)
def test_a_setting_that_cannot_be_meant_is_refused_by_name(key: str, value: int) -> None:
    with pytest.raises(UserError, match=key):
        read_table(EvaluateConfig, {key: value}, "pocket.toml [evaluate]")


def test_the_default_settings_are_valid() -> None:
    assert read_table(EvaluateConfig, {}, "pocket.toml [evaluate]") == EvaluateConfig()
