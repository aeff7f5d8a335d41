"""From a configuration to its module."""

from groundup.model.config import EncoderDecoderConfig, ModelConfig
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.language_model import LanguageModel

AnyConfig = ModelConfig | EncoderDecoderConfig
AnyModel = LanguageModel | EncoderDecoder


def build(config: AnyConfig) -> AnyModel:
    """The module of a configuration, with weights that are not filled yet."""
    if isinstance(config, EncoderDecoderConfig):
        return EncoderDecoder(config)
    return LanguageModel(config)
