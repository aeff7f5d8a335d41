"""The head of a quantized model as a program: logits of what leaves its layers.

Shape suffixes: m tokens of a step, n tokens, d width of the head, v vocabulary.
"""

from collections.abc import Sequence

from torch import Tensor

from groundup.engine.kernels.choices import peaks_of
from groundup.engine.kernels.low_rank import AdaptedTokens
from groundup.engine.kernels.program import Product, Program
from groundup.model.language_model import LanguageModel, softcap
from groundup.quantize.modules import QuantizedMatrixModule

# Tokens whose logits are computed at a time: there are no more texts in most steps, and their guesses.
MOST_ROWS = 128
# What adapters know the head by: see `Adapter.changes`.
HEAD_PRODUCT = "head_product"


class HeadRunner:
    """Computes logits of up to `MOST_ROWS` tokens, if the head is quantized.

    leaves_md: the buffer of what leaves the layers.
    """

    def __init__(self, model: LanguageModel, leaves_md: Tensor) -> None:
        head, bias_v = model.head_matrix, model.head_bias
        self._softcap = model.config.logit_softcap
        self._program: Program | None = None
        self._peaks: Tensor | None = None
        if isinstance(head, QuantizedMatrixModule) and leaves_md.shape[1] == head.matrix.columns:
            self._hidden_nd = leaves_md[:MOST_ROWS]
            self._program = Program(len(self._hidden_nd))
            logits_nv = self._program.buffer("logits", head.matrix.rows)
            # Made once: most steps ask for as many rows as the one before.
            self._first_rows = [logits_nv[:rows] for rows in range(len(logits_nv) + 1)]
            if self._softcap is None:
                self._peaks = peaks_of(*logits_nv.shape)
            added_v = None if bias_v is None else bias_v.detach().float()
            product = Product(head.matrix, added_v, logits_nv, peaks=self._peaks)
            self._program.linear(self._program.quantize(self._hidden_nd), product)
            self._program.adapt(self._hidden_nd, {HEAD_PRODUCT: logits_nv})

    def computes(self, rows: int) -> bool:
        return self._program is not None and rows <= self._program.tokens

    def peaks(self, adapted: Sequence[AdaptedTokens]) -> Tensor | None:
        """What the product has left of logits that nothing was added to; see `Choices.choose`."""
        return None if adapted else self._peaks

    def logits(self, hidden_nd: Tensor | None, rows: int, adapted: Sequence[AdaptedTokens]) -> Tensor:
        """(n, vocab), valid until the next call.

        hidden_nd: of n = `rows` tokens, which overwrite what stood at the beginning of `leaves_md`; None: the tokens
        that stand there.
        """
        assert self._program is not None
        if hidden_nd is not None:
            self._hidden_nd[:rows] = hidden_nd
        self._program.run_rows(rows, adapted)
        return softcap(self._first_rows[rows], self._softcap)
