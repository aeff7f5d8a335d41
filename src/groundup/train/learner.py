"""A model that learns from rows of tokens: all that the training loop knows of what it trains.

Decoders, encoders and encoder-decoders differ in what their rows hold (`tokens/`), not here: each guesses the targets
of its rows through its output head. Beside that loss, mixtures of experts keep their experts busy (`balance.py`).
Shape suffixes: b rows, t places, n tokens (rows and places flattened), d model width.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.experts import Routing
from groundup.model.language_model import LanguageModel
from groundup.model.stack import Stack
from groundup.quantize.convert import require_quantizable
from groundup.quantize.training import rounded
from groundup.tokens.batches import IGNORE, Rows
from groundup.train.balance import Balance, Routed, balance_loss, end_step, routers
from groundup.train.token_loss import ChunkLoss, loss_and_slope, token_loss

TextModel = LanguageModel | EncoderDecoder

# Where few places carry loss, so many at a time go through the head: compiled code then meets few sizes.
HEAD_PLACES = 256


class Loss(NamedTuple):
    """What some rows add to a step: sums, so that it does not matter how a step's rows were split.

    total: of the targets' cross-entropy, in nats. auxiliary: of what is minimised beside it, by rows, or None.
    tally: float64, whatever else is summed over rows, for `Learner.end_step`.
    """

    total: Tensor
    auxiliary: Tensor | None
    tally: Tensor


class Learner:
    """A model and its loss.

    balance: for a mixture of experts, or None. quantize: the name of the format that the model is to be served in, or
    None; UserError is raised for a model that cannot be.
    """

    def __init__(self, model: TextModel, balance: Balance | None = None, quantize: str | None = None) -> None:
        self.model = model
        if quantize is not None:
            require_quantizable(model)
        self.quantize = quantize
        # Weights of a folder lie as in its files, GPT-2's transposed; checkpoints and optimizers want them in order.
        for parameter in model.parameters():
            parameter.data = parameter.data.contiguous()
        self._balance = balance
        self._routers = routers(model) if balance is not None else []
        self._chunk_loss: ChunkLoss = loss_and_slope
        self._guesses_few = isinstance(model, LanguageModel) and not model.config.causal

    def loss(self, rows: Rows) -> Loss:
        """The loss of rows, with a gradient."""
        routed: list[Routed] | None = [] if self._routers else None
        text = text_part(self.model)
        hidden_nd = final_hidden(self.model, rows, routed).flatten(0, 1)
        targets_n = torch.from_numpy(rows.targets).to(self.model.device).flatten()
        if self._guesses_few:
            hidden_nd, targets_n = _places_with_loss(hidden_nd, targets_n)
        head = text.head_matrix
        inputs_nd, weight_vd = head.used_input(hidden_nd), head.used_weight()
        total, _ = token_loss(
            inputs_nd, weight_vd, targets_n, text.config.logit_softcap, self._chunk_loss, text.head_bias
        )
        if routed is None or self._balance is None:
            return Loss(total, None, torch.zeros(0, dtype=torch.float64, device=total.device))
        return Loss(total, *balance_loss(routed, self._balance))

    def end_step(self, tally: Tensor, rows: int) -> dict[str, float]:
        """Move what no gradient moves, by the summed tally of a step of `rows` rows; returns figures of the step."""
        return {} if self._balance is None else end_step(self._routers, tally, rows, self._balance)

    def compute_in(self, dtype: torch.dtype | None) -> None:
        """Set the type of activations and matrix products; None: that of the weights."""
        for stack in stacks(self.model):
            stack.compute_dtype = dtype

    def rounded(self, share: float) -> AbstractContextManager[None]:
        """Within it, numbers are rounded as for serving, weights by this share, 0 to 1 (`quantize/training.py`)."""
        return rounded(self.model, self.quantize, share)

    def as_served(self) -> AbstractContextManager[None]:
        """Within it, the model computes as it will be served."""
        return self.rounded(1.0)

    @contextmanager
    def compiled(self, wanted: bool) -> Iterator[None]:
        """Within it, layers are compiled one by one, since equal layers share one compilation, and the head's loss."""
        layers = [layer for stack in stacks(self.model) for layer in stack.layers]
        if wanted:
            for layer in layers:
                layer.compile(dynamic=False)
            self._chunk_loss = torch.compile(loss_and_slope, dynamic=False)
        try:
            yield
        finally:
            self._chunk_loss = loss_and_slope
            for layer in layers:
                layer._compiled_call_impl = None


def text_part(model: TextModel) -> LanguageModel:
    """The part with the embedding and the head."""
    return model.decoder if isinstance(model, EncoderDecoder) else model


def stacks(model: nn.Module) -> list[Stack]:
    """The stacks of layers in a model, the model itself where it is one."""
    return [module for module in model.modules() if isinstance(module, Stack)]


def final_hidden(model: TextModel, rows: Rows, routed: list[Routed] | None = None) -> Tensor:
    """The activations from which the head guesses the rows' targets, (rows, places, width of the head).

    routed: takes up where the tokens went in each layer that has experts, an encoder's first.
    """
    device, memory = model.device, None
    if isinstance(model, EncoderDecoder):
        if rows.source is None:
            raise ValueError("an encoder-decoder learns from rows with a source")
        source, positions, segments = (torch.from_numpy(array).to(device) for array in rows.source.arrays())
        routings: list[Routing] | None = None if routed is None else []
        memory = model.encode(source, positions, segments, routings)
        _count(routed, routings, segments)
    input_ids, _, positions, segments = (torch.from_numpy(array).to(device) for array in rows.arrays())
    routings = None if routed is None else []
    hidden_btd = text_part(model).hidden(input_ids, positions, segments, memory=memory, routings=routings)
    _count(routed, routings, segments)
    return hidden_btd


def _count(routed: list[Routed] | None, routings: list[Routing] | None, segments_bt: Tensor) -> None:
    if routed is not None and routings is not None:
        routed.extend(Routed(routing, segments_bt >= 0) for routing in routings)


def _places_with_loss(hidden_nd: Tensor, targets_n: Tensor) -> tuple[Tensor, Tensor]:
    """Those places alone whose targets carry loss, and as many others as fill up the last `HEAD_PLACES`."""
    places = (targets_n != IGNORE).nonzero().flatten()
    count, filled = len(places), F.pad(places, (0, -len(places) % HEAD_PLACES))
    return hidden_nd.index_select(0, filled), F.pad(targets_n[places], (0, len(filled) - count), value=IGNORE)
