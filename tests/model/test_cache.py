"""The cache of one generation saves time and changes nothing, whatever the chunks and the padding."""

import pytest
import torch
from tiny import TYPICAL, hot_decoder, random_ids, tiny_config

from groundup.model.cache import KeyValueCache
from groundup.model.language_model import LanguageModel


@pytest.fixture(params=TYPICAL)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    """In float64, where rounding never decides between two tokens."""
    return hot_decoder(tiny_config(request.param, kv_heads=1, context=100))


@pytest.mark.parametrize("chunks", [(90,), (1,) * 90, (5, 1, 1, 60, 23)], ids=["at once", "one by one", "in chunks"])
@torch.no_grad()
def test_logits_through_the_cache_are_those_without(model: LanguageModel, chunks: tuple[int, ...]):
    ids, cache = random_ids(2, 90), KeyValueCache(model)
    pieces = [model(piece, cache=cache) for piece in ids.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids), rtol=1e-11, atol=1e-11)
    assert cache.length == 90


@torch.no_grad()
def test_left_padding_changes_nothing_behind_the_cache(model: LanguageModel):
    ids, padding, cache = random_ids(3, 20), (0, 4, 9), KeyValueCache(model)
    padded = torch.stack(
        [torch.cat((random_ids(pad, seed=5), row[pad:])) for pad, row in zip(padding, ids, strict=True)]
    )
    mask = torch.stack([torch.arange(20) >= pad for pad in padding]).int()
    pieces, seen = [], 0
    for piece in padded.split((12, 1, 1, 6), dim=1):
        seen += piece.shape[1]
        pieces.append(model(piece, attention_mask=mask[:, :seen], cache=cache))
    for row, pad in enumerate(padding):
        alone = model(ids[row : row + 1, pad:])[0]
        torch.testing.assert_close(torch.cat(pieces, dim=1)[row, pad:], alone, rtol=1e-11, atol=1e-11)
