"""Weights to start training from, the same on every machine for one seed.

Inputs of a layer are uniform with variance 1/width; what a layer adds to the residual starts at zero, so that a model
begins as its embedding (both as in nanochat). Tables of n-grams and induction and gates start at zero, residual scalars
so that a layer's input passes unchanged but for a tenth of the first. A head of its own starts near zero, so that the
first loss is ln(vocab); a tied one is normal with the usual 0.02, divided by the factor on its logits if there is one
(PaLM).
"""

import math
from functools import singledispatch

import torch
from torch import Tensor, nn

from groundup.model.attention import SelfAttention
from groundup.model.audio import AudioTower, Convolution, sinusoids
from groundup.model.classifier import SequenceClassifier
from groundup.model.convolution import CausalConvolution
from groundup.model.delta import GatedDelta
from groundup.model.dual_encoder import DualEncoder
from groundup.model.experts import ExpertLinear, ExpertNetworks, MixtureOfExperts
from groundup.model.feedforward import DenseFeedForward
from groundup.model.induction import NgramHeads
from groundup.model.language_model import LanguageModel, Transform
from groundup.model.latent import LatentSelfAttention
from groundup.model.mamba import MambaMixer
from groundup.model.mamba2 import Mamba2Mixer
from groundup.model.parts import Linear, Normalise
from groundup.model.positions import RelativeBias
from groundup.model.short_convolution import GatedConvolution
from groundup.model.shortcuts import NgramEmbedding, ResidualMix, TokenValues
from groundup.model.stack import Stack
from groundup.model.vision import AttentionPooling, ImageClassifier, ImageTower
from groundup.model.vision_language import VisionLanguageModel


class Start:
    """The ways in which tensors are filled, all from one generator.

    width: of the layers around them; output_gain: of what a layer adds to the residual, against the usual 1/width.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self.width = 1
        self.output_gain = 0.0

    def uniform(self, *tensors: Tensor) -> None:
        """With variance 1/width."""
        bound = (3 / self.width) ** 0.5
        for tensor in tensors:
            nn.init.uniform_(tensor, -bound, bound, generator=self._generator)

    def between(self, tensor: Tensor, low: float, high: float) -> None:
        """Evenly from `low` to `high`."""
        nn.init.uniform_(tensor, low, high, generator=self._generator)

    def step_bias(self, tensor: Tensor) -> None:
        """What softplus makes steps of 0.001 to 0.1 of, spread evenly in their logarithm (Gu and Dao 2023, 3.6)."""
        self.between(tensor, math.log(0.001), math.log(0.1))
        tensor.exp_().expm1_().log_()

    def outputs(self, *tensors: Tensor) -> None:
        """What a layer adds to the residual: zeros, unless `output_gain` says otherwise."""
        if not self.output_gain:
            return self.zeros(*tensors)
        for tensor in tensors:
            self.normal(tensor, std=self.output_gain * self.width**-0.5)

    def normal(self, tensor: Tensor, std: float) -> None:
        """With mean 0."""
        nn.init.normal_(tensor, std=std, generator=self._generator)

    def zeros(self, *tensors: Tensor | None) -> None:
        """Those that there are."""
        for tensor in tensors:
            if tensor is not None:
                nn.init.zeros_(tensor)


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Fill a model's weights; each kind of module says below how its own tensors start."""
    start = Start(seed)
    for module in model.modules():  # from the outside in: what belongs to a stack comes after it
        if isinstance(module, Stack):
            start.width = module.width
        fill(module, start)


@singledispatch
def fill(module: nn.Module, start: Start) -> None:
    """The tensors of a module that no module inside it owns; of most kinds there are none."""


@fill.register
def _(module: LanguageModel, start: Start) -> None:
    tied_std = 0.02 / (module.config.logit_scale or 1.0)
    start.normal(module.embedding.weight, std=tied_std if module.head is None else 0.8)
    if module.head is not None:
        start.normal(module.head.weight, std=0.001)
    start.zeros(module.head_bias)
    for table in filter(None, (module.positions, module.token_types)):
        start.normal(table.weight, std=0.02)
    for linear in filter(None, (module.embedding_in, module.embedding_out)):
        start.uniform(linear.weight)


@fill.register
def _(module: TokenValues, start: Start) -> None:
    start.uniform(module.table.weight)
    start.zeros(module.gate)


@fill.register
def _(module: NgramEmbedding, start: Start) -> None:
    start.zeros(*module.tables.parameters())


@fill.register
def _(module: NgramHeads, start: Start) -> None:
    start.zeros(module.table.weight, module.gate, module.gate_bias)
    nn.init.ones_(module.weight)


@fill.register
def _(module: ResidualMix, start: Start) -> None:
    module.scalars.fill_(0.05)
    module.scalars[:2] = torch.tensor((1.0, 0.1))


@fill.register
def _(module: SelfAttention, start: Start) -> None:
    start.uniform(module.query.weight, module.key.weight, module.value.weight)
    if module.spec.scale is not None:  # whatever the scale, the first scores are as large as with the usual one (T5)
        module.query.weight.mul_(module.spec.head_dim**-0.5 / module.spec.scale)
    start.outputs(module.output.weight)
    start.zeros(module.head_gate, module.sinks)
    start.zeros(None if module.output_gate is None else module.output_gate.weight)


@fill.register
def _(module: LatentSelfAttention, start: Start) -> None:
    parts = filter(None, (module.query_down, module.query, module.latent, module.key_value))
    start.uniform(*(part.weight for part in parts))
    start.zeros(module.output.weight)


@fill.register
def _(module: GatedDelta, start: Start) -> None:
    start.uniform(module.query.weight, module.key.weight, module.value.weight, module.gate.weight)
    start.zeros(module.strength.weight, module.step.weight, module.output.weight)
    # Mamba-2's: rates of 1 to 16.
    start.between(module.log_rate, 1.0, 16.0)
    module.log_rate.log_()
    start.step_bias(module.step_bias)


@fill.register
def _(module: GatedConvolution, start: Start) -> None:
    start.uniform(module.before.weight, module.after.weight, module.value.weight)
    start.zeros(module.output.weight)


@fill.register
def _(module: CausalConvolution, start: Start) -> None:
    bound = (3 / module.weight.shape[-1]) ** 0.5
    start.between(module.weight, -bound, bound)
    start.zeros(module.bias)


@fill.register
def _(module: MambaMixer, start: Start) -> None:
    start.uniform(module.input.weight, module.gate.weight, module.selection.weight)
    start.between(module.step.weight, -(module.spec.rank**-0.5), module.spec.rank**-0.5)
    start.step_bias(module.step_bias)
    # S4D-real: rates of 1, 2, 3, … in each channel (Gu et al. 2022).
    numbers = torch.arange(1, module.spec.state + 1, device=module.log_rate.device)
    module.log_rate.copy_(numbers.log()[:, None].expand_as(module.log_rate))
    nn.init.ones_(module.skip)
    start.zeros(module.output.weight)


@fill.register
def _(module: Mamba2Mixer, start: Start) -> None:
    start.uniform(module.input.weight, module.gate.weight, module.step.weight)
    start.step_bias(module.step_bias)
    start.between(module.log_rate, 1.0, 16.0)
    module.log_rate.log_()
    nn.init.ones_(module.skip)
    nn.init.ones_(module.norm_weight)
    start.zeros(module.output.weight)


@fill.register
def _(module: MixtureOfExperts, start: Start) -> None:
    start.normal(module.router.weight, std=0.02)
    start.zeros(module.correction, None if module.shared_gate is None else module.shared_gate.weight)


@fill.register(DenseFeedForward)
@fill.register(ExpertNetworks)
def _(module: DenseFeedForward | ExpertNetworks, start: Start) -> None:
    start.uniform(module.up.weight)
    if module.gate is not None:
        start.uniform(module.gate.weight)
    start.outputs(module.down.weight)


@fill.register
def _(module: SequenceClassifier, start: Start) -> None:
    start.normal(module.head.weight, std=0.02)


@fill.register
def _(module: Transform, start: Start) -> None:
    start.uniform(module.linear.weight)


@fill.register
def _(module: RelativeBias, start: Start) -> None:
    start.zeros(module.table.weight)


@fill.register
def _(module: AudioTower, start: Start) -> None:
    module.positions.weight.copy_(sinusoids(module.config.positions, module.config.width))


@fill.register
def _(module: Convolution, start: Start) -> None:
    start.normal(module.weight, std=module.weight[0].numel() ** -0.5)
    start.zeros(module.bias)


@fill.register
def _(module: Normalise, start: Start) -> None:
    module.reset()


@fill.register(Linear)
@fill.register(ExpertLinear)
def _(module: Linear | ExpertLinear, start: Start) -> None:
    start.zeros(module.bias)


@fill.register
def _(module: ImageTower, start: Start) -> None:
    start.normal(module.patches.weight, std=module.config.patch_values**-0.5)
    start.normal(module.positions.weight, std=0.02)
    if module.class_token is not None:
        start.normal(module.class_token, std=0.02)


@fill.register
def _(module: AttentionPooling, start: Start) -> None:
    start.normal(module.probe, std=1.0)


@fill.register
def _(module: ImageClassifier, start: Start) -> None:
    start.normal(module.head.weight, std=0.001)


@fill.register
def _(module: DualEncoder, start: Start) -> None:
    # With layers that add nothing all texts of one length are one vector, all images another, and no gradient moves.
    layers = max(len(module.config.text.layers), len(module.config.image.layers))
    start.output_gain = (2 * layers) ** -0.5
    for linear in filter(None, (module.text_projection, module.image_projection)):
        start.normal(linear.weight, std=linear.weight.shape[1] ** -0.5)
    # Radford et al. 2021, section 2.5; Zhai et al. 2023, section 3.2.
    module.logit_scale.fill_(math.log(1 / 0.07 if module.logit_bias is None else 10))
    if module.logit_bias is not None:
        module.logit_bias.fill_(-10)


@fill.register
def _(module: VisionLanguageModel, start: Start) -> None:
    for linear in (module.projector_in, module.projector_out):
        start.normal(linear.weight, std=linear.weight.shape[1] ** -0.5)
