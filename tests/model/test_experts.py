"""Mixtures of experts against loops over tokens, experts and groups."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import heat, hot_decoder, random_ids, tiny_config
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.utils.flop_counter import FlopCounterMode
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

from groundup.model.config import ModelConfig
from groundup.model.experts import MixtureOfExperts, Routing, route
from groundup.model.initialise import initialise
from groundup.model.language_model import LanguageModel
from groundup.model.specs import Experts, FeedForward, Router

WIDTH = 12
GATED = FeedForward(10, "silu", gated=True)
GPT_OSS = FeedForward(10, "silu", gated=True, bias=True, sharpness=1.3, limit=0.9, up_offset=1.0)
DEEPSEEK = Router(8, 3, "sigmoid", correction=True, groups=4, chosen_groups=2, scale=2.5)
MIXTURES = {
    "Mixtral": Experts(GATED, Router(5, 2)),
    "one of many": Experts(GATED, Router(40, 1, normalised=False)),
    "all": Experts(GATED, Router(3, 3)),
    "Qwen2-MoE": Experts(GATED, Router(5, 2, normalised=False), shared=replace(GATED, width=7), shared_gate=True),
    "gpt-oss": Experts(GPT_OSS, Router(5, 2, bias=True)),
    "DeepSeek": Experts(GATED, DEEPSEEK, shared=GATED),
    "no gate": Experts(FeedForward(10, "relu_squared", gated=False, bias=True), Router(5, 2)),
}
ALL_MIXTURES = pytest.mark.parametrize("spec", MIXTURES.values(), ids=MIXTURES)


def _hot(spec: Experts) -> MixtureOfExperts:
    mixture = MixtureOfExperts(spec, WIDTH).double()
    heat(mixture, seed=0)
    if mixture.correction is not None:
        mixture.correction.sub_(1).mul_(0.2)
    return mixture


def _inputs(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _config(spec: Experts) -> ModelConfig:
    """One dense layer, two with experts."""
    config = tiny_config("llama")
    layer = config.layers[0]
    return replace(config, layers=(layer, *(replace(layer, feed_forward=spec),) * 2))


def _choose(spec: Router, logits: list[float], correction: list[float]) -> dict[int, float]:
    """The experts of one token and their weights, by the definitions."""
    if spec.score == "sigmoid":
        scores = [1 / (1 + math.exp(-logit)) for logit in logits]
    else:
        scores = [math.exp(logit) / sum(map(math.exp, logits)) for logit in logits]
    rank = [score + extra for score, extra in zip(scores, correction, strict=True)]
    size = spec.experts // spec.groups
    groups = [range(start, start + size) for start in range(0, spec.experts, size)]
    groups.sort(key=lambda group: sum(sorted((rank[e] for e in group), reverse=True)[: spec.group_best]), reverse=True)
    eligible = [expert for group in groups[: spec.chosen_groups] for expert in group]
    chosen = sorted(eligible, key=lambda expert: rank[expert], reverse=True)[: spec.chosen]
    total = sum(scores[expert] for expert in chosen) if spec.normalised else 1.0
    return {expert: spec.scale * scores[expert] / total for expert in chosen}


def _network(spec: FeedForward, weights: dict[str, Tensor], x_d: Tensor) -> Tensor:
    """One feed-forward network, by the definitions."""

    def linear(name: str, x: Tensor) -> Tensor:
        return weights[f"{name}.weight"] @ x + weights.get(f"{name}.bias", 0.0)

    up = linear("up", x_d)
    if not spec.gated:
        return linear("down", torch.relu(up) ** 2)
    gate, limit = linear("gate", x_d), math.inf if spec.limit is None else spec.limit
    gate, up = torch.clamp(gate, max=limit), torch.clamp(up, -limit, limit)
    return linear("down", gate * torch.sigmoid(spec.sharpness * gate) * (up + spec.up_offset))


def _brute_force(mixture: MixtureOfExperts, x_btd: Tensor) -> Tensor:
    spec, named = mixture.spec, dict(mixture.named_parameters())

    def part(prefix: str, index: Any = ...) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): one[index] for name, one in named.items() if name.startswith(prefix)}

    logits_btd = x_btd @ named["router.weight"].T + named.get("router.bias", 0.0)
    correction = named.get("correction", torch.zeros(spec.router.experts)).tolist()
    out = []
    for x_d, logits in zip(x_btd.flatten(0, 1), logits_btd.flatten(0, 1), strict=True):
        chosen = _choose(spec.router, logits.tolist(), correction)
        scores = logits.sigmoid() if spec.router.score == "sigmoid" else logits.softmax(-1)
        total = sum(scores[list(chosen)]) if spec.router.normalised else 1.0
        weights = {expert: spec.router.scale * scores[expert] / total for expert in chosen}
        y_d = sum(weight * _network(spec.expert, part("experts.", e), x_d) for e, weight in weights.items())
        if spec.shared is not None:
            gate = torch.sigmoid(named["shared_gate.weight"][0] @ x_d) if spec.shared_gate else 1.0
            y_d = y_d + gate * _network(spec.shared, part("shared."), x_d)
        out.append(y_d)
    return torch.stack(out).view_as(x_btd)


@ALL_MIXTURES
@pytest.mark.parametrize("shape", [(1, 1), (2, 9)], ids=str)
def test_outputs_and_gradients_are_those_of_a_loop_over_tokens(spec: Experts, shape: tuple[int, int]):
    mixture, x_btd = _hot(spec), _inputs(*shape).requires_grad_()
    leaves = {"x": x_btd} | {name: one for name, one in mixture.named_parameters() if one.requires_grad}
    ours, theirs = mixture(x_btd)[0], _brute_force(mixture, x_btd)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
    slope = _inputs(*shape, seed=1)
    expected = torch.autograd.grad((theirs * slope).sum(), list(leaves.values()))
    found = torch.autograd.grad((ours * slope).sum(), list(leaves.values()))
    for name, one, other in zip(leaves, found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize(
    "spec",
    [
        Router(6, 2),
        Router(6, 2, normalised=False, scale=0.5),
        Router(6, 3, "sigmoid", correction=True),
        Router(6, 4, "softmax", groups=3, chosen_groups=2, group_best=1),
        DEEPSEEK,
        replace(DEEPSEEK, group_best=1),
        replace(DEEPSEEK, chosen_groups=4),
    ],
    ids=str,
)
def test_a_router_chooses_by_its_definition(spec: Router):
    generator = torch.Generator().manual_seed(0)
    logits_ne = 2 * torch.randn(200, spec.experts, generator=generator, dtype=torch.float64)
    correction_e = 0.3 * torch.randn(spec.experts, generator=generator, dtype=torch.float64)
    correction_e = correction_e if spec.correction else torch.zeros_like(correction_e)
    routing, weights_nc = route(spec, logits_ne, correction_e if spec.correction else None)
    for logits, experts, weights in zip(logits_ne, routing.experts_nc.tolist(), weights_nc.tolist(), strict=True):
        expected = _choose(spec, logits.tolist(), correction_e.tolist())
        assert dict(zip(experts, weights, strict=True)) == pytest.approx(expected, rel=1e-12)


@torch.no_grad()
def test_the_router_of_deepseek_is_that_of_its_reference():
    shape = {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3, "hidden_size": WIDTH}
    theirs = DeepseekV3TopkRouter(DeepseekV3Config(**shape, norm_topk_prob=True, routed_scaling_factor=2.5))
    heat(theirs, seed=0)
    theirs.e_score_correction_bias.copy_(0.2 * torch.randn(8, generator=torch.Generator().manual_seed(1)))
    _, weights_nc, experts_nc = theirs(_inputs(40).float())
    logits_ne = _inputs(40) @ theirs.weight.double().T
    routing, our_weights_nc = route(DEEPSEEK, logits_ne, theirs.e_score_correction_bias.double())
    order, our_order = experts_nc.argsort(), routing.experts_nc.argsort()
    assert torch.equal(experts_nc.gather(1, order), routing.experts_nc.gather(1, our_order))
    torch.testing.assert_close(our_weights_nc.gather(1, our_order).float(), weights_nc.gather(1, order))


def test_a_correction_changes_who_is_chosen_but_no_weight():
    logits_ne = torch.tensor([[2.0, 1.0, 0.0]])
    spec = Router(3, 1, "sigmoid", normalised=False, correction=True)
    routing, weights_nc = route(spec, logits_ne, torch.tensor([0.0, 0.0, 10.0]))
    assert routing.experts_nc.tolist() == [[2]]
    assert weights_nc.item() == pytest.approx(0.5)
    mixture = _hot(MIXTURES["DeepSeek"])
    mixture(_inputs(2, 9))[0].sum().backward()
    assert mixture.correction is not None
    assert mixture.correction.grad is None


def test_experts_without_tokens_have_zero_gradients():
    mixture = _hot(MIXTURES["one of many"])
    out_btd, routing = mixture(_inputs(1, 4))
    out_btd.sum().backward()
    for parameter in mixture.experts.parameters():
        moved = {index for index, gradient in enumerate(parameter.grad) if gradient.any()}
        assert moved == set(routing.experts_nc.flatten().tolist())


@ALL_MIXTURES
def test_only_what_tokens_pass_through_is_computed(spec: Experts):
    mixture = _hot(spec)
    with FlopCounterMode(display=False) as counter:
        mixture(_inputs(2, 9))
    assert counter.get_total_flops() == 2 * 18 * spec.matmul_parameters(WIDTH)


@ALL_MIXTURES
def test_active_parameters_cost(spec: Experts):
    config = _config(spec)
    model = LanguageModel(config)
    ids = random_ids(2, 9)
    initialise(model, seed=0)
    with FlopCounterMode(display=False) as counter:
        model.logits(model.hidden(ids, torch.arange(9).expand(2, 9)))
    scores = 4 * 18 * 9 * sum(layer.attention.heads * layer.attention.head_dim for layer in config.layers)
    assert counter.get_total_flops() == 2 * 18 * config.matmul_parameters() + scores


@ALL_MIXTURES
def test_a_decoder_hands_out_where_its_tokens_went(spec: Experts):
    model = hot_decoder(_config(spec))
    routings: list[Routing] = []
    ids, positions = random_ids(2, 9), torch.arange(9).expand(2, 9)
    hidden_btd = model.hidden(ids, positions, routings=routings)
    assert len(routings) == 2, "the first layer has no experts"
    for routing in routings:
        assert routing.logits_ne.shape == routing.scores_ne.shape == (18, spec.router.experts)
        assert routing.experts_nc.shape == (18, spec.router.chosen)
        assert routing.logits_ne.requires_grad
    assert torch.equal(model.hidden(ids, positions), hidden_btd)


@ALL_MIXTURES
def test_compiled_layers_give_the_same_and_settle(spec: Experts):
    model = hot_decoder(_config(spec))
    count, positions = CompileCounter(), torch.arange(9).expand(2, 9)
    expected = []
    for seed in range(4):
        routings: list[Routing] = []
        expected.append((model.hidden(random_ids(2, 9, seed=seed), positions, routings=routings), routings))
    torch.compiler.reset()
    for layer in model.layers:
        layer.compile(dynamic=False, backend=count)
    graphs = []
    for seed, (hidden_btd, routings) in enumerate(expected):
        found: list[Routing] = []
        ours_btd = model.hidden(random_ids(2, 9, seed=seed), positions, routings=found)
        torch.testing.assert_close(ours_btd, hidden_btd, rtol=1e-12, atol=1e-12)
        for one, other in zip(found, routings, strict=True):
            assert torch.equal(one.experts_nc, other.experts_nc)
        graphs.append(count.frame_count)
    assert graphs[0] > 0
    # The second pass may find that layers with and without experts share their first half.
    assert graphs[1:] == graphs[1:2] * 3, "other routes must not mean other programs"


def test_scores_are_computed_in_float32_whatever_the_tokens_are():
    mixture = MixtureOfExperts(MIXTURES["Mixtral"], WIDTH)
    heat(mixture, seed=0)
    x_btd = _inputs(1, 50).bfloat16()
    out_btd, routing = mixture(x_btd)
    assert out_btd.dtype == torch.bfloat16
    expected = F.linear(x_btd[0].double(), mixture.router.weight.double())
    torch.testing.assert_close(routing.logits_ne.double(), expected, rtol=1e-5, atol=1e-5)


@ALL_MIXTURES
def test_training_starts_from_finite_weights_and_experts_that_add_nothing(spec: Experts):
    model = LanguageModel(_config(spec))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    initialise(model, seed=0)
    mixtures = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    for parameter in model.parameters():
        assert torch.isfinite(parameter).all()
    for mixture in mixtures:
        out_btd, routing = mixture(torch.randn(1, 50, model.config.width))
        assert not out_btd.any()
        assert len(routing.experts_nc.unique()) > 1, "all tokens to the same expert"


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: Router(4, 5), "5 experts cannot be chosen from 4"),
        (lambda: Router(4, 0), "0 experts"),
        (lambda: Router(4, 1, groups=3), "4 experts do not form 3"),
        (lambda: Router(4, 1, groups=2, chosen_groups=3), "3 groups"),
        (lambda: Router(4, 3, groups=2, chosen_groups=1), "3 experts cannot be chosen from 2"),
        (lambda: Router(4, 1, groups=4, chosen_groups=1), "no 2 best"),
        (lambda: Experts(GATED, Router(4, 1), shared_gate=True), "shared_gate"),
        (lambda: FeedForward(4, "silu", gated=False, limit=1.0), "limit"),
    ],
)
def test_mixtures_that_cannot_be_are_refused(build: Any, named: str):
    with pytest.raises(ValueError, match=named):
        build()
