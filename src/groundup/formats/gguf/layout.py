"""What llama.cpp calls tensors, and how it lays them out: one table of rules for each shape of model."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from groundup.formats.gguf.blocks import F16, F32, Q4_0, Q8_0, BlockFormat
from groundup.formats.rules import Joined, Rule, Same, Shape, named, same, with_biases
from groundup.model.config import ModelConfig
from groundup.model.specs import Projection

NAMES = {
    "embedding.weight": "token_embd.weight",
    "layers.*.mixer_norm.weight": "blk.*.attn_norm.weight",
    "layers.*.mixer.query.weight": "blk.*.attn_q.weight",
    "layers.*.mixer.key.weight": "blk.*.attn_k.weight",
    "layers.*.mixer.value.weight": "blk.*.attn_v.weight",
    "layers.*.mixer.output.weight": "blk.*.attn_output.weight",
    "layers.*.mixer.query_norm.weight": "blk.*.attn_q_norm.weight",
    "layers.*.mixer.key_norm.weight": "blk.*.attn_k_norm.weight",
    "layers.*.feed_forward_norm.weight": "blk.*.ffn_norm.weight",
    "layers.*.feed_forward.gate.weight": "blk.*.ffn_gate.weight",
    "layers.*.feed_forward.up.weight": "blk.*.ffn_up.weight",
    "layers.*.feed_forward.down.weight": "blk.*.ffn_down.weight",
    "layers.*.feed_forward.router.weight": "blk.*.ffn_gate_inp.weight",
    "layers.*.feed_forward.experts.gate.weight": "blk.*.ffn_gate_exps.weight",
    "layers.*.feed_forward.experts.up.weight": "blk.*.ffn_up_exps.weight",
    "layers.*.feed_forward.experts.down.weight": "blk.*.ffn_down_exps.weight",
    "layers.*.feed_forward.shared.gate.weight": "blk.*.ffn_gate_shexp.weight",
    "layers.*.feed_forward.shared.up.weight": "blk.*.ffn_up_shexp.weight",
    "layers.*.feed_forward.shared.down.weight": "blk.*.ffn_down_shexp.weight",
    "layers.*.feed_forward.shared_gate.weight": "blk.*.ffn_gate_inp_shexp.weight",
    "final_norm.weight": "output_norm.weight",
    "head.weight": "output.weight",
}
SANDWICH_NAMES = {
    "layers.*.mixer_output_norm.weight": "blk.*.post_attention_norm.weight",
    "layers.*.feed_forward_output_norm.weight": "blk.*.post_ffw_norm.weight",
}
BERT_NAMES = {
    "positions.weight": "position_embd.weight",
    "token_types.weight": "token_types.weight",
    "embedding_norm.weight": "token_embd_norm.weight",
    "layers.*.mixer_sum_norm.weight": "blk.*.attn_output_norm.weight",
    "layers.*.feed_forward_sum_norm.weight": "blk.*.layer_output_norm.weight",
}
# Of most architectures, and of an encoder with norms after each sum and tables of positions and kinds of tokens.
rules, bert_rules = named(NAMES), named(NAMES | BERT_NAMES)
EMBEDDING, HEAD, TOKEN_TYPES = NAMES["embedding.weight"], NAMES["head.weight"], BERT_NAMES["token_types.weight"]
# The bias that a projection has in the first layer, if it has any.
BIASES: dict[Projection, str] = {
    "query": "blk.0.attn_q.bias",
    "key": "blk.0.attn_k.bias",
    "value": "blk.0.attn_v.bias",
    "output": "blk.0.attn_output.bias",
}
# Matrices that llama.cpp's converter leaves in single precision.
SINGLE_PRECISION = (
    "ffn_gate_inp.weight",
    "ffn_gate_inp_shexp.weight",
    "position_embd.weight",
    "token_types.weight",
    "_norm.weight",
)


@dataclass(frozen=True)
class Interleaved:
    """Rows of queries or keys, in each head, from pairs (i, i + half) to neighbours (2i, 2i + 1), which is how LLaMA's
    first files and llama.cpp have them."""

    views = False

    heads: int

    def to_disk(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [one.unflatten(0, (self.heads, 2, -1)).transpose(1, 2).flatten(0, 2) for one in ours]

    def from_disk(self, disk: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        return [one.unflatten(0, (self.heads, -1, 2)).transpose(1, 2).flatten(0, 2) for one in disk]


@dataclass(frozen=True)
class PlusOne:
    """The weight of a norm that multiplies by 1 + weight, stored with the one in it."""

    views = False

    def to_disk(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [(one.double() + 1).float() for one in ours]

    def from_disk(self, disk: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        return [(one.double() - 1).float() for one in disk]


def llama_rules(config: ModelConfig) -> list[Rule]:
    """The same with interleaved queries and keys."""
    mixer = config.layers[0].attention
    heads = {"layers.*.mixer.query.weight": mixer.heads, "layers.*.mixer.key.weight": mixer.kv_heads}
    turned = [Rule((ours,), (NAMES[ours],), Interleaved(count)) for ours, count in heads.items()]
    return with_biases([*same({ours: disk for ours, disk in NAMES.items() if ours not in heads}), *turned])


def gemma_rules(config: ModelConfig) -> list[Rule]:
    """The same with two more norms, all of them with their one."""
    named = (NAMES | SANDWICH_NAMES).items()
    operations = ((ours, disk, PlusOne() if ours.endswith("norm.weight") else Same()) for ours, disk in named)
    return with_biases([Rule((ours,), (disk,), operation) for ours, disk, operation in operations])


def gpt2_rules(config: ModelConfig) -> list[Rule]:
    """Queries, keys and values as one, and a table of positions."""
    projections = tuple(f"layers.*.mixer.{name}.weight" for name in ("query", "key", "value"))
    names = {ours: disk for ours, disk in NAMES.items() if ours not in projections}
    fused = Rule(projections, ("blk.*.attn_qkv.weight",), Joined())
    return [*with_biases([*same(names), fused]), *same({"positions.weight": "position_embd.weight"})]


def format_of(name: str, shape: Shape, wanted: BlockFormat, tied_head: bool) -> BlockFormat:
    """How a tensor is stored in a file of `wanted` matrices, by the conventions of llama.cpp's converter.

    Vectors, norms, routers and positions stay in single precision; rows that are no whole blocks fall back to half.
    Next to 4 bits the output matrix keeps 8, as llama.cpp's own quantization gives it more.
    """
    if len(shape) < 2 or not name.endswith(".weight") or name.endswith(SINGLE_PRECISION):
        return F32
    if wanted is Q4_0 and name == (EMBEDDING if tied_head else HEAD):
        wanted = Q8_0
    return F16 if shape[-1] % wanted.block else wanted
