"""How far the layers of a model see, and so for how long the engine has to keep what they remember.

Where every layer sees a window, a text gives back all that is out of sight. Where some do and others see everything,
those that see a window have blocks of their own: see `window_blocks.py`.
"""

from groundup.engine.blocks import blocks_for
from groundup.model.language_model import LanguageModel
from groundup.model.specs import Attention, LatentAttention


def reach(model: LanguageModel) -> int | None:
    """Tokens before the next one that some layer can see; None where that is all of them."""
    config = model.config
    if config.ngram_buckets or config.induction is not None or config.relative_positions is not None:
        return None
    farthest = 0
    for layer in config.layers:
        if isinstance(layer.mixer, LatentAttention):
            return None
        if isinstance(layer.mixer, Attention):
            if layer.mixer.window is None:
                return None
            farthest = max(farthest, layer.mixer.window)
    return farthest


def windowed_layers(model: LanguageModel) -> list[int]:
    """The numbers of the layers that see a window."""
    mixers = [layer.mixer for layer in model.config.layers]
    return [number for number, mixer in enumerate(mixers) if isinstance(mixer, Attention) and mixer.window is not None]


def window_of(model: LanguageModel) -> int | None:
    """Tokens that the layers which see a window see at most; None where there is none, and where `reach` tells."""
    mixers = [layer.mixer for layer in model.config.layers]
    windows = [mixer.window for mixer in mixers if isinstance(mixer, Attention) and mixer.window is not None]
    return max(windows) if windows and reach(model) is None else None


def blocks_in_sight(window: int, most_running: int, step_tokens: int, block_size: int) -> int:
    """Blocks of windows that all that run have in sight together, at most, so that they never wait for one.

    Of each as many as the window fills, one in which it begins, and one in which the next tokens do; and what the
    tokens of a step fill.
    """
    return most_running * (blocks_for(window, block_size) + 2) + blocks_for(step_tokens, block_size)
