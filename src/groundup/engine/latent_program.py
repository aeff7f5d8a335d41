"""Multi-head latent attention as instructions of a program: `LatentSelfAttention`, with whole keys and values cached.

The kernels turn the first numbers of a head and keep values as long as keys: so the turned part of each query and key
comes first here, which changes no product, and what is shorter is filled up with zeros.

Shape suffixes: m tokens, d model width, h heads, k padded head dimension, r latent rank.
"""

from collections.abc import Callable

from torch import Tensor

from groundup.engine.kernels import KeyValueBlocks
from groundup.engine.kernels.program import Program
from groundup.engine.norm_program import write_norm
from groundup.model.latent import LatentSelfAttention
from groundup.model.specs import LatentAttention

# Appends linear maps of x by name, and adds a residual, or None, to what they give.
Linear = Callable[[Tensor, dict[str, Tensor], Tensor | None], None]


def padded_head_dim(spec: LatentAttention) -> int:
    """Numbers of a head that are cached, of its key and of its value each."""
    return max(spec.plain_dim + spec.rotated_dim, spec.value_dim)


def write_latent(
    program: Program,
    mixer: LatentSelfAttention,
    turning: tuple[Tensor, Tensor],
    key_values: KeyValueBlocks,
    linear: Linear,
    x_md: Tensor,
    out_md: Tensor,
    residual_md: Tensor | None,
) -> None:
    """Append out = residual + attention(x)."""
    spec, heads = mixer.spec, mixer.spec.heads
    asked_mq = program.buffer("latent query", heads * (spec.plain_dim + spec.rotated_dim))
    latent_mr = program.buffer("latent", spec.latent_rank + spec.rotated_dim)
    if spec.query_rank is None:
        linear(x_md, {"mixer.latent": latent_mr, "mixer.query": asked_mq}, None)
    else:
        down_mr = program.buffer("query rank", spec.query_rank)
        linear(x_md, {"mixer.latent": latent_mr, "mixer.query_down": down_mr}, None)
        write_norm(program, mixer.query_norm, down_mr, down_mr)
        linear(down_mr, {"mixer.query": asked_mq}, None)
    normed_mr = program.buffer("normed latent", spec.latent_rank)
    write_norm(program, mixer.latent_norm, latent_mr, normed_mr)
    made_mkv = program.buffer("latent keys and values", heads * (spec.plain_dim + spec.value_dim))
    linear(normed_mr, {"mixer.key_value": made_mkv}, None)

    width, turned = heads * key_values.head_dim, spec.rotated_dim
    # Named by where their zeros lie, which are written here once and for all.
    dims = f"of {heads} heads, {spec.plain_dim} + {turned} and {spec.value_dim}"
    query_mk, key_mk, value_mk = (program.buffer(f"{name} {dims}", width).zero_() for name in ("q", "k", "v"))

    def lay_out(tokens: int) -> None:
        query_mhk, key_mhk, value_mhk = (each[:tokens].view(tokens, heads, -1) for each in (query_mk, key_mk, value_mk))
        plain_mhk, turning_mhk = asked_mq[:tokens].view(tokens, heads, -1).split((spec.plain_dim, turned), dim=-1)
        query_mhk[..., :turned], query_mhk[..., turned : turned + spec.plain_dim] = turning_mhk, plain_mhk
        made_mhk = made_mkv[:tokens].view(tokens, heads, -1)
        key_mhk[..., :turned] = latent_mr[:tokens, None, spec.latent_rank :]
        key_mhk[..., turned : turned + spec.plain_dim] = made_mhk[..., : spec.plain_dim]
        value_mhk[..., : spec.value_dim] = made_mhk[..., spec.plain_dim :]

    program.call(lay_out)
    for each in (query_mk, key_mk):
        program.rope(each, heads, *turning, interleaved=spec.rope.interleaved)
    program.store(key_values, key_mk, value_mk)
    seen_mk, answer_mv = program.buffer("latent seen", width), program.buffer("latent answer", heads * spec.value_dim)
    scale = spec.scored.scale
    assert scale is not None
    program.attend(query_mk, key_values, seen_mk, scale=scale)

    def take(tokens: int) -> None:
        seen_mhk = seen_mk[:tokens].view(tokens, heads, -1)
        answer_mv[:tokens].view(tokens, heads, -1).copy_(seen_mhk[..., : spec.value_dim])

    program.call(take)
    linear(answer_mv, {"mixer.output": out_md}, residual_md)
