"""Settings of fine-tuning refuse what cannot be meant, naming the key."""

import pytest

from groundup.align.config import SftConfig
from groundup.errors import UserError
from groundup.settings import read_table


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"document_share": 1.5}, "document_share"),
        ({"document_share": 0.9, "unanswerable_share": 0.2}, "unanswerable_share"),
        ({"calculator_share": 0.9, "chat_share": 0.1}, "chat_share"),
        ({"minutes": 2.0, "epochs": 1.0}, "one budget"),
        ({"minutes": -1}, "minutes"),
        ({"passages": 0}, "passages"),
        ({"document_characters": 100}, "document_characters"),
        ({"batch_tokens": 1000}, "batch_tokens"),
        ({"learning_rate": "fast"}, "learning_rate"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused_by_name(table: dict[str, object], key: str) -> None:
    with pytest.raises(UserError, match=key):
        read_table(SftConfig, table, "pocket.toml [sft]")


def test_the_default_settings_are_valid() -> None:
    assert read_table(SftConfig, {}, "pocket.toml [sft]") == SftConfig()
