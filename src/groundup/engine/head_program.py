"""The head of a model as a program: logits of what leaves its layers.

Shape suffixes: m tokens of a step, n tokens, d width of the head, v vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from groundup.engine.kernels.choices import peaks_of
from groundup.engine.kernels.low_rank import AdaptedTokens
from groundup.engine.kernels.program import Product, Program
from groundup.engine.model_matrices import ModelMatrices
from groundup.model.language_model import LanguageModel, softcap

# Tokens whose logits are computed at a time: there are no more texts in most steps, and their guesses.
MOST_ROWS = 128
# What adapters know the head by: see `Adapter.changes`.
HEAD_PRODUCT = "head_product"


class HeadRunner:
    """Computes logits of up to `MOST_ROWS` tokens at a time.

    leaves_md: the buffer of what leaves the layers.
    """

    def __init__(self, model: LanguageModel, matrices: ModelMatrices, leaves_md: Tensor) -> None:
        head, bias_v = matrices.of(model.head_matrix), model.head_bias
        self._softcap = model.config.logit_softcap
        first_nd = leaves_md[:MOST_ROWS]
        logits_nv = torch.empty(len(first_nd), head.rows)
        # Made once: most steps ask for as many rows as the one before.
        self._first_rows = [logits_nv[:rows] for rows in range(len(logits_nv) + 1)]
        self._peaks = peaks_of(*logits_nv.shape) if self._softcap is None else None
        added_v = None if bias_v is None else bias_v.detach().float()
        product = Product(head, added_v, logits_nv, peaks=self._peaks)
        self._hidden_nd = torch.empty_like(first_nd)
        self._of_leaves, self._of_hidden = (_program(each_nd, product) for each_nd in (first_nd, self._hidden_nd))

    @property
    def most_rows(self) -> int:
        return len(self._hidden_nd)

    def peaks(self, adapted: Sequence[AdaptedTokens]) -> Tensor | None:
        """What the product has left of logits that nothing was added to; see `Choices.choose`."""
        return None if adapted else self._peaks

    def logits(self, hidden_nd: Tensor | None, rows: int, adapted: Sequence[AdaptedTokens]) -> Tensor:
        """(n, vocab), valid until the next call.

        hidden_nd: of n = `rows` tokens; None: those at the beginning of `leaves_md`.
        """
        if hidden_nd is None:
            self._of_leaves.run_rows(rows, adapted)
        else:
            self._hidden_nd[:rows] = hidden_nd
            self._of_hidden.run_rows(rows, adapted)
        return softcap(self._first_rows[rows], self._softcap)


def _program(hidden_nd: Tensor, product: Product) -> Program:
    program = Program(len(hidden_nd))
    program.linear(hidden_nd, product)
    program.adapt(hidden_nd, {HEAD_PRODUCT: product.out_mn})
    return program
