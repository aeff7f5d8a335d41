"""How much the cache of a model is to hold, and the memory that takes."""

from bisect import bisect_right

import torch

from groundup.engine.blocks import blocks_for
from groundup.engine.cache_memory import memory_bytes
from groundup.engine.kernels import STRIP
from groundup.engine.kernels.checks import round_up
from groundup.engine.layer_program import key_value_shape
from groundup.engine.runner import decoder_of, depends_on_the_longest
from groundup.engine.sight import blocks_in_sight, window_of, windowed_layers
from groundup.engine.window_blocks import WindowBlocks
from groundup.model.config import AudioConfig
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.language_model import LanguageModel
from groundup.model.specs import Attention, LatentAttention

# What the cache may hold by default, of keys and values.
CACHE_BYTES = 2**30
# For every so many blocks there is one of windows beside those that running texts have in sight: texts that begin like
# earlier ones find what they need there.
BLOCKS_PER_FURTHER_ONE = 4


class CachePlan:
    """Of one model, with keys and values of a type in blocks of a size.

    most_running, step_tokens: see `Engine`.
    """

    def __init__(
        self,
        model: LanguageModel | EncoderDecoder,
        dtype: torch.dtype,
        block_size: int,
        most_running: int,
        step_tokens: int,
    ) -> None:
        self.dtype, self.block_size = dtype, block_size
        self._model, self._most_running, self._step_tokens = model, most_running, step_tokens
        decoder = decoder_of(model)
        # What is read of sources lies in blocks of all layers, and prompts that are never cut fill any number.
        has_windows = decoder is model and not depends_on_the_longest(decoder)
        self._window = window_of(decoder) if has_windows else None
        self._seeing_all, self._windowed = _token_bytes(decoder, dtype)

    def usual_tokens(self) -> int:
        """As many as fit into `CACHE_BYTES` and can be of use, but at least one text of full length and its source.

        However long texts may be, no more than half of the memory.
        """
        config = self._model.config
        longest = config.max_positions
        if isinstance(self._model, EncoderDecoder):
            encoder = self._model.config.encoder
            longest += encoder.positions if isinstance(encoder, AudioConfig) else longest

        def fitting(size_bytes: int) -> int:
            return bisect_right(range(1, self._most_running * longest + 1), size_bytes, key=self.size_bytes)

        return max(1, min(max(longest, fitting(CACHE_BYTES)), fitting(memory_bytes(self._model.device) // 2)))

    def size_bytes(self, tokens: int) -> int:
        """That so many tokens take where the model lies."""
        blocks = self.window_blocks(blocks_for(tokens, self.block_size))
        windowed = tokens if blocks is None else min(tokens, blocks * self.block_size)
        return tokens * self._seeing_all + windowed * self._windowed

    def host_bytes(self, tokens: int) -> int:
        """That so many tokens take in the host's memory."""
        return tokens * (self._seeing_all + self._windowed)

    def window_blocks(self, blocks: int) -> int | None:
        """How many of windows there are beside so many blocks; None for models that have none."""
        if self._window is None:
            return None
        in_sight = blocks_in_sight(self._window, self._most_running, self._step_tokens, self.block_size)
        return min(blocks, in_sight + blocks // BLOCKS_PER_FURTHER_ONE)

    def windows(self, blocks: int) -> WindowBlocks | None:
        """These, all free."""
        count = self.window_blocks(blocks)
        if count is None or self._window is None:
            return None
        return WindowBlocks(count, blocks, self._window, self.block_size)


def _token_bytes(model: LanguageModel, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes that are held for each token, at most: keys and values in this type, and its id.

    The second number is that of layers that see a window.
    """
    sizes, windowed = [8, 0], windowed_layers(model)
    for number, layer in enumerate(model.config.layers):
        if isinstance(layer.mixer, Attention | LatentAttention):
            # As the kernels keep them, who take most: values are filled up to whole strips.
            heads, head_dim = key_value_shape(layer.mixer)
            numbers = heads * (head_dim + round_up(head_dim, STRIP))
            scales = 2 * heads if dtype == torch.int8 else 0
            sizes[number in windowed] += numbers * dtype.itemsize + 4 * scales
    return sizes[0], sizes[1]
