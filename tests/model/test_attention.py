"""Every path of attention against the definition, written as loops over single queries in float64."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from groundup.model import attention
from groundup.model.attention import SelfAttention, attend, attend_fused, attend_in_blocks
from groundup.model.context import Shared, Visibility
from groundup.model.specs import Attention

Path = Callable[[Attention, Tensor, Tensor, Tensor, Visibility], Tensor]
PATHS = pytest.mark.parametrize("path", [attend_in_blocks, attend_fused, attend])


def _by_definition(
    spec: Attention,
    q_bhtk: Tensor,
    k_bhsk: Tensor,
    v_bhsk: Tensor,
    segments_bs: Tensor | None,
    sinks_h: Tensor | None = None,
) -> Tensor:
    """softmax(scale q·k) over the keys of the query's own segment that it may see, with all that `spec` adds."""
    batch, heads, time, head_dim = q_bhtk.shape
    keys, group = k_bhsk.shape[2], heads // k_bhsk.shape[1]
    out = torch.zeros_like(q_bhtk)
    for b, h, t in itertools.product(range(batch), range(heads), range(time)):
        own = keys - time + t
        seen = [s for s in range(own + 1 if spec.causal else keys) if _near(spec, own, s)]
        seen = [s for s in seen if segments_bs is None or segments_bs[b, s] == segments_bs[b, own]]
        scores = []
        for s in seen:
            score = float(q_bhtk[b, h, t] @ k_bhsk[b, h // group, s]) * (spec.scale or 1 / math.sqrt(head_dim))
            if spec.softcap is not None:
                score = spec.softcap * math.tanh(score / spec.softcap)
            if spec.alibi is not None:
                score -= spec.alibi * 2 ** (-8 * (h + 1) / heads) * (own - s)
            scores.append(score)
        scores += [] if sinks_h is None else [float(sinks_h[h])]
        weights = torch.tensor(scores)
        weights = (weights - weights.max()).exp()
        for weight, s in zip(weights / weights.sum(), seen, strict=False):  # the sink's weight goes nowhere
            out[b, h, t] += weight * v_bhsk[b, h // group, s]
    return out


def _near(spec: Attention, own: int, key: int) -> bool:
    if spec.window is None:
        return True
    return own - key < spec.window if spec.causal else abs(own - key) <= spec.window


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def _inputs(batch: int, heads: int, kv_heads: int, time: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(time * 1000 + keys)
    shapes = [(batch, heads, time, 6), (batch, kv_heads, keys, 6), (batch, kv_heads, keys, 6)]
    q, k, v = (torch.randn(shape, generator=generator) for shape in shapes)
    return 2 * q, k, v


def _segments(batch: int, keys: int) -> Tensor:
    """Uneven documents, other ones in each row, the first row starting with padding."""
    lengths = [[2, 3, 1, 4], [1, 1, 5, 2]]
    rows = [torch.repeat_interleave(torch.arange(80), torch.tensor(lengths[b % 2] * 20))[:keys] for b in range(batch)]
    segments_bs = torch.stack(rows).to(torch.int32)
    segments_bs[0, :2] = -1
    return segments_bs


def _visible(segments_bs: Tensor | None, time: int) -> Visibility:
    return Visibility(None if segments_bs is None else segments_bs[:, -time:], segments_bs)


@PATHS
@pytest.mark.parametrize("segmented", [False, True], ids=["one segment", "segments"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("time", "keys"), [(1, 1), (7, 7), (13, 13), (1, 9), (6, 17)], ids=lambda size: f"{size}")
def test_each_path_computes_the_definition(
    path: Path, time: int, keys: int, kv_heads: int, segmented: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(attention, "QUERY_BLOCK", 4)
    q, k, v = _inputs(2, 4, kv_heads, time, keys)
    segments_bs = _segments(2, keys) if segmented else None
    spec = Attention(4, kv_heads, 6)
    result = path(spec, q, k, v, _visible(segments_bs, time))
    torch.testing.assert_close(result, _by_definition(spec, q, k, v, segments_bs), rtol=1e-12, atol=1e-12)


VARIATIONS: dict[str, dict[str, object]] = {
    "scale": {"scale": 0.3},
    "window": {"window": 3},
    "window of itself": {"window": 1},
    "both sides": {"causal": False},
    "both sides, window": {"causal": False, "window": 2},
    "softcap": {"softcap": 1.5},
    "distance bias": {"alibi": 0.7},
    "sinks": {"sinks": True},
    "many with sinks": {"scale": 0.3, "window": 4, "softcap": 2.0, "sinks": True},
    "many with a distance bias": {"scale": 0.3, "window": 4, "softcap": 2.0, "alibi": 0.5},
}


@pytest.mark.parametrize("segmented", [False, True], ids=["one segment", "segments"])
@pytest.mark.parametrize(("time", "keys"), [(13, 13), (1, 9), (6, 17)], ids=lambda size: f"{size}")
@pytest.mark.parametrize("variation", VARIATIONS)
def test_each_variation_computes_the_definition(
    variation: str, time: int, keys: int, segmented: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(attention, "QUERY_BLOCK", 4)
    spec = Attention(4, 2, 6, **VARIATIONS[variation])  # type: ignore[arg-type]
    q, k, v = _inputs(2, 4, 2, time, keys)
    sinks_h = torch.linspace(-1, 2, 4) if spec.sinks else None
    segments_bs = _segments(2, keys) if segmented else None
    visible = _visible(segments_bs, time)
    expected = _by_definition(spec, q, k, v, segments_bs, sinks_h)
    torch.testing.assert_close(attend(spec, q, k, v, visible, sinks_h), expected, rtol=1e-12, atol=1e-12)
    if spec.softcap is None and spec.alibi is None and not spec.sinks:
        torch.testing.assert_close(attend_fused(spec, q, k, v, visible), expected, rtol=1e-12, atol=1e-12)


@PATHS
def test_a_row_longer_than_a_block_of_the_real_size(path: Path):
    time = attention.QUERY_BLOCK + 3
    q, k, v = _inputs(1, 1, 1, time, time)
    segments_bs = torch.repeat_interleave(torch.arange(37), 7)[None, :time].to(torch.int32)
    spec = Attention(1, 1, 6)
    result = path(spec, q, k, v, _visible(segments_bs, time))
    torch.testing.assert_close(result, _by_definition(spec, q, k, v, segments_bs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("segmented", [False, True], ids=["one segment", "segments"])
def test_both_paths_have_the_gradients_of_finite_differences(segmented: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK", 2)
    q, k, v = (tensor.requires_grad_() for tensor in _inputs(2, 2, 1, 3, 5))
    visible = _visible(_segments(2, 5) if segmented else None, 3)
    for path in (attend_in_blocks, attend_fused):
        assert torch.autograd.gradcheck(
            lambda q, k, v, path=path: path(Attention(2, 1, 6), q, k, v, visible), (q, k, v)
        )


def test_long_rows_take_the_fused_path_with_the_same_result(monkeypatch: pytest.MonkeyPatch):
    q, k, v = _inputs(2, 4, 2, 11, 11)
    visible = _visible(_segments(2, 11), 11)
    spec = Attention(4, 2, 6)
    short = attend(spec, q, k, v, visible)
    monkeypatch.setattr(attention, "BLOCKED_KEYS", 10)
    monkeypatch.setattr(attention, "attend_in_blocks", None)
    torch.testing.assert_close(attend(spec, q, k, v, visible), short, rtol=1e-12, atol=1e-12)


def test_head_gates_scale_each_heads_output_by_twice_a_sigmoid():
    torch.manual_seed(0)
    spec = Attention(heads=2, kv_heads=1, head_dim=4, head_gate=True)
    gated, plain = SelfAttention(spec, width=16), SelfAttention(replace(spec, head_gate=False), width=16)
    for parameter in gated.parameters():
        nn.init.normal_(parameter)
    plain.load_state_dict({name: value for name, value in gated.state_dict().items() if name != "head_gate"})
    # With the output map of one head alone, what comes out is that head's part.
    x_btd, shared = torch.randn(2, 5, 16), Shared(None, Visibility(None, None))
    outputs = gated.output.weight.detach().clone()
    for head in range(2):
        alone = torch.zeros_like(outputs)
        alone[:, head * 4 : head * 4 + 4] = outputs[:, head * 4 : head * 4 + 4]
        gated.output.weight.data.copy_(alone)
        plain.output.weight.data.copy_(alone)
        gate_bt1 = 2 * torch.sigmoid((x_btd[..., :12] * gated.head_gate[head]).sum(-1, keepdim=True))
        torch.testing.assert_close(gated(x_btd, shared, None), gate_bt1 * plain(x_btd, shared, None))
