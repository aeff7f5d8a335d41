"""From a configuration to its module."""

from groundup.model.classifier import SequenceClassifier
from groundup.model.config import ClassifierConfig, EncoderDecoderConfig, ModelConfig
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.language_model import LanguageModel

AnyConfig = ModelConfig | EncoderDecoderConfig | ClassifierConfig
AnyModel = LanguageModel | EncoderDecoder | SequenceClassifier


def build(config: AnyConfig) -> AnyModel:
    """The module of a configuration, with weights that are not filled yet."""
    if isinstance(config, EncoderDecoderConfig):
        return EncoderDecoder(config)
    if isinstance(config, ClassifierConfig):
        return SequenceClassifier(config)
    return LanguageModel(config)
