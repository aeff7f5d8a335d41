"""What enters the layers, and what those of our own preset are offered beside it: n-grams, followers, values.

All of it follows from the tokens of the texts: it is looked up once for a step and lies in buffers of the program, from
which each layer takes its own mixture (`model/shortcuts.py`, `model/induction.py`).

Shape suffixes: m tokens, d model width, k kv width or kinds of tokens, j streams, n followers of a token.
"""

from collections.abc import Sequence
from itertools import chain
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from groundup.engine.followers import EarlierPlaces
from groundup.engine.kernels.program import Product, Program
from groundup.engine.kernels.tables import Numbers
from groundup.engine.model_matrices import ModelMatrices, activation_dtype, are_readable, bias_of
from groundup.engine.norm_program import write_norm
from groundup.engine.sequence import Chunk
from groundup.engine.sequence import Sequence as Text
from groundup.model.induction import NOWHERE
from groundup.model.language_model import LanguageModel
from groundup.model.shortcuts import TokenValues
from groundup.model.stack import Block


class Lookups:
    """What is looked up in the texts themselves. places: of each text, where its last tokens stood before."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._places: WeakKeyDictionary[Text, EarlierPlaces] = WeakKeyDictionary()

    def ngrams(self, chunks: Sequence[Chunk], positions_m: npt.NDArray[np.int32]) -> Tensor | None:
        """The sums of n-gram vectors, (m, d), or None where the model has none.

        positions_m: of these tokens, and perhaps of others behind them.
        """
        ngrams = self._model.ngrams
        if ngrams is None:
            return None
        distances = range(len(ngrams.tables), -1, -1)
        stream_mt = torch.stack([torch.from_numpy(earlier_tokens(chunks, distance)) for distance in distances], dim=1)
        positions_m1 = torch.from_numpy(positions_m).long()[: len(stream_mt), None]
        rows_m1d: Tensor = ngrams(stream_mt, positions_m1, torch.float32)
        return rows_m1d[:, 0]

    def followers(self, chunks: Sequence[Chunk]) -> list[tuple[int, ...]] | None:
        """Of all tokens, n times m numbers as `induction.followers` has them; None where the model looks for none."""
        heads = self._model.induction
        if heads is None:
            return None
        rows: list[list[int]] = []
        for chunk in chunks:
            places = self._places.get(chunk.sequence)
            if places is None:
                places = self._places[chunk.sequence] = EarlierPlaces(heads.spec)
            rows += places.followers_of(chunk.sequence.tokens, chunk.start, chunk.start + chunk.length)
        return list(zip(*rows, strict=True))


def earlier_tokens(chunks: Sequence[Chunk], distance: int) -> npt.NDArray[np.int64]:
    """The tokens so far before those of the chunks, int64 (m,); 0 before the beginning of a text."""

    def shifted(chunk: Chunk) -> list[int]:
        start, end = chunk.start - distance, chunk.start + chunk.length - distance
        return [0] * (min(end, 0) - min(start, 0)) + chunk.sequence.tokens[max(start, 0) : max(end, 0)]

    count = sum(chunk.length for chunk in chunks)
    return np.fromiter(chain.from_iterable(map(shifted, chunks)), dtype=np.int64, count=count)


class Offered:
    """The buffers of one program, and the instructions that fill and use them."""

    def __init__(self, program: Program, matrices: ModelMatrices, model: LanguageModel) -> None:
        self._program, self._matrices, self._model = program, matrices, model
        self._heads, vocabulary, learned = model.induction, model.config.vocab_size, model.config.learned_positions
        lengths, followers = (0, 0) if self._heads is None else (len(self._heads.spec.lengths), self._heads.spec.terms)
        self._ids = program.numbers(vocabulary)
        self._positions = None if learned is None else program.numbers(learned.rows + learned.offset)
        # What entered the first layer, n-grams, and each of the followers.
        streams = 1 + (model.ngrams is not None) + followers if model.config.residual_mix else 0
        self._streams_jmd = program.buffers(streams, model.width)
        self._rows_nmd = self._streams_jmd[streams - followers :]
        self._kinds = program.numbers(lengths + 1)
        self._followers = None if self._heads is None else program.numbers(vocabulary, followers, least=NOWHERE)
        if self._heads is not None:
            self._gather_followers(self._heads.table)

    def enter(self, x_md: Tensor) -> None:
        """Append what enters the layers, as `LanguageModel.embed` has it; x: the buffer of the first layer's input."""
        for out_md in (x_md, *self._streams_jmd[:1]):
            self._look_up(out_md)
            write_norm(self._program, self._model.embedding_norm, out_md, out_md)

    def _look_up(self, out_md: Tensor) -> None:
        program, model, widened = self._program, self._model, self._model.embedding_in
        found_md = out_md if widened is None else program.buffer("embedding", model.config.table_width)
        self._gather("embedding", self._ids, found_md)
        if widened is not None:
            program.linear(found_md, Product(self._matrices.of(widened), bias_of(widened), out_md))
            program.adapt(found_md, {"embedding_in": out_md})
        if model.config.embedding_scale is not None:
            scale = float(torch.tensor(model.config.embedding_scale, dtype=activation_dtype(model)))
            program.call(lambda tokens: out_md[:tokens].mul_(scale))
        if self._positions is not None:
            position_md = program.buffer("position", model.width)
            self._gather("positions", self._positions, position_md)
            program.add(out_md, position_md)

    def _gather(self, table: str, numbers: Numbers, out_mk: Tensor) -> None:
        """The vectors of a table of the model, with what adapters add to them."""
        self._program.gather(self._matrices.of(self._model.get_submodule(table)), numbers, out_mk[None])
        self._program.adapt_table(table, numbers, out_mk)

    def tell(
        self,
        ids: list[int],
        positions_m: npt.NDArray[np.int32],
        ngrams_md: Tensor | None,
        followers: Sequence[tuple[int, ...]] | None,
    ) -> None:
        """What the next run is about. positions_m: of these tokens, and perhaps of others behind them."""
        tokens = len(ids)
        self._ids.tell(ids)
        if self._positions is not None and self._model.config.learned_positions is not None:
            self._positions.tell((positions_m[:tokens] + self._model.config.learned_positions.offset).tolist())
        if ngrams_md is not None:
            self._streams_jmd[1, :tokens] = ngrams_md
        if self._heads is not None and self._followers is not None and followers is not None:
            self._followers.tell(*followers)
            nearest = followers[:: self._heads.spec.places]
            self._kinds.tell([len(nearest) - found.count(NOWHERE) for found in zip(*nearest, strict=True)])

    def mix(self, layer: Block, number: int, x_md: Tensor) -> None:
        """Append the mixture of what enters a layer. What a follower counts depends on how many lengths found one."""
        if layer.mix is None:
            return
        scalars = layer.mix.scalars.detach().float()
        weights_kj = scalars[None]
        if self._heads is not None:
            weight_kn = self._heads.weight[number].detach().float()
            weights_kj = torch.cat((scalars[:-1].expand(len(weight_kn), -1), scalars[-1] * weight_kn), dim=1)
        self._program.mix(x_md, self._streams_jmd, weights_kj, self._kinds)

    def add_values(self, values: TokenValues, input_md: Tensor, value_mk: Tensor) -> None:
        """Append what the tokens' own vectors add to their attention values."""
        rows_mk = self._program.buffer("token values", value_mk.shape[1])
        self._program.gather(self._matrices.of(values.table), self._ids, rows_mk[None])
        self._program.gate(input_md, values.gate.detach().float(), rows_mk, value_mk, value_mk, factor=2.0)

    def point(self, hidden_md: Tensor, head: nn.Module) -> None:
        """Append what raises the followers' own logits, as `Found.point` has it."""
        if self._heads is not None:
            self._gather_followers(head)
            bias_kn = self._heads.gate_bias.detach().float()
            weights_kj = torch.cat((torch.ones(len(bias_kn), 1), bias_kn), dim=1)
            gates_nd = self._heads.gate.detach().float()
            self._program.mix(hidden_md, self._rows_nmd, weights_kj, self._kinds, gates_nd)

    def _gather_followers(self, table: nn.Module) -> None:
        assert self._followers is not None
        self._program.gather(self._matrices.of(table), self._followers, self._rows_nmd)


def is_offerable(model: LanguageModel) -> bool:
    """Whether a program can look up all that enters the layers, or is offered to them."""
    if model.token_types is not None or model.transform is not None:
        return False
    values = [layer.token_values for layer in model.layers if isinstance(layer, Block)]
    tables: list[nn.Module | None] = [model.embedding, model.embedding_in, model.positions]
    tables += [each.table for each in values if each is not None]
    if model.induction is not None:
        tables += [model.induction.table, model.head_matrix]
        if model.embedding_out is not None or model.config.logit_scale is not None:
            return False  # the followers' logits come behind these
    return are_readable(tables)
