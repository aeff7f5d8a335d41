"""From a configuration to its module."""

from groundup.model.classifier import SequenceClassifier
from groundup.model.config import ClassifierConfig, EncoderDecoderConfig, ModelConfig
from groundup.model.dual_encoder import DualEncoder
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.language_model import LanguageModel
from groundup.model.vision import ImageClassifier
from groundup.model.vision_config import DualEncoderConfig, ImageClassifierConfig, VisionLanguageConfig
from groundup.model.vision_language import VisionLanguageModel

AnyConfig = (
    ModelConfig
    | EncoderDecoderConfig
    | ClassifierConfig
    | ImageClassifierConfig
    | DualEncoderConfig
    | VisionLanguageConfig
)
AnyModel = LanguageModel | EncoderDecoder | SequenceClassifier | ImageClassifier | DualEncoder | VisionLanguageModel


def build(config: AnyConfig) -> AnyModel:
    """The module of a configuration, with weights that are not filled yet."""
    if isinstance(config, EncoderDecoderConfig):
        return EncoderDecoder(config)
    if isinstance(config, ClassifierConfig):
        return SequenceClassifier(config)
    if isinstance(config, ImageClassifierConfig):
        return ImageClassifier(config)
    if isinstance(config, DualEncoderConfig):
        return DualEncoder(config)
    if isinstance(config, VisionLanguageConfig):
        return VisionLanguageModel(config)
    return LanguageModel(config)
