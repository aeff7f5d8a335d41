"""Configurations that cannot be built say which key is at fault."""

from dataclasses import replace

import pytest
from tiny import tiny_config

from groundup.model.config import EncoderDecoderConfig, RelativePositions
from groundup.model.delta_specs import GatedDeltaNet, ShortConvolution
from groundup.model.presets import PRESETS, WIDTH_PER_LAYER, build_config, presets_by_kind
from groundup.model.recurrent_specs import Mamba, Mamba2
from groundup.model.rotary import Rope
from groundup.model.specs import Attention, Induction, LatentAttention, Mixer, Norm, QueryKeyNorm


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("depth", [1, 3, 12])
def test_one_dial_sets_the_sizes(preset: str, depth: int):
    config = build_config(preset, depth, vocab_size=100, context=256, head_dim=32)
    assert (config.vocab_size, config.max_positions) == (100, 256)
    stacks = [config.encoder, config.decoder] if isinstance(config, EncoderDecoderConfig) else [config]
    for stack in stacks:
        assert len(stack.layers) == depth
        assert stack.width == depth * WIDTH_PER_LAYER
        for layer in stack.layers:
            _assert_of_width(layer.mixer, stack.width)


def _assert_of_width(mixer: Mixer, width: int) -> None:
    """Heads have the asked 32 numbers each, and are as many as the width makes; states are twice as wide."""
    match mixer:
        case Attention(heads=heads, head_dim=head_dim) | LatentAttention(heads=heads, plain_dim=head_dim):
            assert (head_dim, heads * head_dim) == (32, width)
        case GatedDeltaNet(key_heads=heads, key_dim=key_dim, value_dim=value_dim):
            assert (key_dim, value_dim, heads * key_dim, mixer.values) == (32, 32, width, 2 * width)
        case Mamba2(head_dim=head_dim):
            assert (head_dim, mixer.channels) == (32, 2 * width)
        case Mamba(channels=channels):
            assert channels == 2 * width
        case _:
            assert isinstance(mixer, ShortConvolution), "this mixer's sizes are compared nowhere"


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_can_be_built_at_its_own_sizes(preset: str):
    for depth in (1, 2, 4):
        build_config(preset, depth, vocab_size=100, context=256)


def test_presets_are_told_apart_by_what_they_make():
    kinds = presets_by_kind()
    assert sorted(name for names in kinds.values() for name in names) == sorted(PRESETS)
    assert kinds["encoders"] == ["bert", "modernbert"]
    assert kinds["encoder-decoders"] == ["t5"]
    assert {"mixtral", "deepseek_v3", "gpt_oss"} <= set(kinds["mixtures of experts"])
    assert {"llama", "gpt2", "palm", "groundup"} <= set(kinds["decoders"])


@pytest.mark.parametrize("preset", ["mixtral", "deepseek_v3", "gpt_oss"])
@pytest.mark.parametrize("depth", [2, 4, 12])
def test_a_token_passes_through_about_as_much_as_in_llama(preset: str, depth: int):
    """So a mixture of experts costs no more time than the dense model that it stands beside."""
    config, dense = (build_config(name, depth, 4096, 512, width=64 * depth) for name in (preset, "llama"))
    ours, theirs = (
        sum(layer.feed_forward.matmul_parameters(64 * depth) for layer in one.layers) for one in (config, dense)
    )
    assert ours == pytest.approx(theirs, rel=0.4)


def test_a_width_that_follows_from_the_depth_is_rounded_up_to_whole_heads():
    assert build_config("llama", depth=3, vocab_size=10, context=8, head_dim=128).width == 256


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"preset": "gpt"}, "preset"),
        ({"depth": 0}, "depth"),
        ({"width": 100}, "width"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"width": 45, "head_dim": 15}, "head_dim"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(changes: dict[str, object], key: str):
    with pytest.raises(ValueError, match=f"`{key}`"):
        build_config(**({"preset": "llama", "depth": 1, "vocab_size": 10, "context": 8} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rope": Rope(), "head_dim": 15}, "`head_dim` must be even"),
        ({"rope": Rope(dims=18)}, "18 rotated dimensions do not fit"),
        ({"window": 0}, "window must be at least 1"),
        ({"sinks": True, "alibi": 1.0}, "sinks and the distance bias"),
        ({"kv_heads": 0}, "`kv_heads` must be at least 1"),
    ],
)
def test_attention_that_cannot_be_is_refused(change: dict[str, object], named: str):
    with pytest.raises(ValueError, match=named):
        replace(Attention(heads=4, kv_heads=2, head_dim=16), **change)


def test_a_norm_over_all_heads_comes_before_they_are_rotated():
    with pytest.raises(ValueError, match="before the rotation"):
        QueryKeyNorm(Norm(), over="width", after_rope=True)


@pytest.mark.parametrize("dims", [0, 3])
def test_an_odd_number_of_rotated_dimensions_is_refused(dims: int):
    with pytest.raises(ValueError, match="even and positive"):
        Rope(dims=dims)


def test_heads_must_share_keys_evenly_and_a_model_needs_layers():
    with pytest.raises(ValueError, match=r"`heads` \(4\).*`kv_heads` \(3\)"):
        Attention(heads=4, kv_heads=3, head_dim=16)
    with pytest.raises(ValueError, match="at least one layer"):
        replace(tiny_config("llama"), layers=())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"residual_mix": False}, "`ngram_buckets` needs `residual_mix`"),
        ({"residual_mix": False, "ngram_buckets": ()}, "`induction` needs `residual_mix`"),
        ({"ngram_buckets": (8, 8, 8)}, "pairs and triples"),
    ],
)
def test_offers_that_no_layer_could_take_are_refused(change: dict[str, object], named: str):
    with pytest.raises(ValueError, match=named):
        replace(build_config("groundup", 2, 300, 64, 64, 16), **change)


@pytest.mark.parametrize(
    ("lengths", "places", "named"),
    [((), 1, "lengths"), ((0, 1), 1, "lengths"), ((2, 1), 1, "lengths"), ((1, 1), 1, "lengths"), ((1, 2), 0, "places")],
)
def test_induction_that_looks_for_nothing_is_refused(lengths: tuple[int, ...], places: int, named: str):
    with pytest.raises(ValueError, match=named):
        Induction(lengths, places)


CROSS = Attention(heads=2, kv_heads=2, head_dim=16, causal=False)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"cross": replace(CROSS, causal=True)}, "no order, window or rotation"),
        ({"cross": replace(CROSS, window=3)}, "no order, window or rotation"),
        ({"cross": replace(CROSS, rope=Rope())}, "no order, window or rotation"),
        ({"cross": replace(CROSS, sinks=True)}, "neither gates nor sinks"),
        ({"cross": CROSS, "placement": "parallel"}, "cross-attention stands with placement 'parallel'"),
        ({"feed_forward": None, "placement": "post"}, "a mixer alone has its norm before it"),
    ],
)
def test_layers_that_cannot_be_are_refused(change: dict[str, object], named: str):
    with pytest.raises(ValueError, match=named):
        replace(tiny_config("llama").layers[0], **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(("buckets", "distance"), [(0, 8), (6, 8), (32, 16)])
def test_relative_positions_need_buckets_for_both_sides_and_for_far_distances(buckets: int, distance: int):
    with pytest.raises(ValueError, match="buckets"):
        RelativePositions(buckets, distance)


def test_relative_positions_have_one_number_of_heads():
    config, relative = tiny_config("llama"), RelativePositions(8, 16)
    fewer = replace(config.layers[0], mixer=Attention(heads=1, kv_heads=1, head_dim=32))
    with pytest.raises(ValueError, match="equally many heads"):
        replace(config, layers=(config.layers[0], fewer), relative_positions=relative)


def test_what_reads_the_tokens_before_needs_layers_that_look_back():
    config = tiny_config("groundup")
    layers = tuple(replace(layer, mixer=replace(layer.attention, causal=False)) for layer in config.layers)
    with pytest.raises(ValueError, match="needs layers that look back alone"):
        replace(config, layers=layers)
