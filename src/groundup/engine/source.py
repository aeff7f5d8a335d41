"""What an encoder-decoder writes a text for: read once, and shared by all sequences that are written for it.

What the layers of the decoder see of it, keys and values for cross-attention, lies in blocks like those of tokens, and
counts as they do. They are held while some sequence for it runs; where none does any more, it has to be read anew.
"""

from hashlib import blake2b

import torch
from torch import Tensor

from groundup.engine.block_table import BlockTable
from groundup.engine.blocks import BlockPool, blocks_for


class Source:
    """content: token ids (length,), or of sound a log-mel spectrogram (mel bins, frames).

    length: places that the decoder sees. key: tells it from every other, so that what is kept of texts for one is never
    taken for that of another. is_read: whether keys and values lie in the blocks of `table`.
    """

    def __init__(self, content: Tensor, length: int) -> None:
        self.content, self.length = content, length
        raw = content.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        self.key = blake2b(raw, digest_size=16, person=str(content.dtype).removeprefix("torch.").encode()).digest()
        self.is_read = False
        self.table: BlockTable | None = None
        self._holders: set[object] = set()

    @property
    def blocks(self) -> int:
        """How many it fills."""
        return blocks_for(self.length)

    @property
    def wanted(self) -> int:
        """Blocks that `hold` would take from the pool."""
        return 0 if self._holders else self.blocks

    def hold(self, holder: object, pool: BlockPool) -> None:
        """Have its blocks held for one more."""
        if not self._holders:
            self.table = BlockTable(pool)
            self.table.grow(self.length, 0)
        self._holders.add(holder)

    def let_go(self, holder: object) -> None:
        """Give the blocks back if this was the last that held them; nothing if it did not."""
        self._holders.discard(holder)
        if not self._holders and self.table is not None:
            self.table.release()
            self.table, self.is_read = None, False
