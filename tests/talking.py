"""Engines that tests talk with: a model whose tokens are bytes, and whether an engine has let go of all its memory."""

import threading

from tiny import hot_decoder

import groundup as gu
from groundup.model.config import ModelConfig
from groundup.model.language_model import LanguageModel
from groundup.model.presets import build_config
from groundup.tokens.config import CONTROL_TOKENS, PATTERNS
from groundup.tokens.tokenizer import Tokenizer, train

# Every byte is a token, and nothing else is but for control tokens.
WORDS = Tokenizer(train(iter([["any text"]]), len(CONTROL_TOKENS) + 256, PATTERNS["code"]))


def talker(seed: int = 0, depth: int = 2, context: int = 120, more_tokens: int = 0) -> LanguageModel:
    """A model for these tokens, in float64; more_tokens: that its tables have beyond them."""
    vocab_size = WORDS.vocab_size + more_tokens
    config = build_config("llama", depth, vocab_size=vocab_size, context=context, width=32, head_dim=16)
    assert isinstance(config, ModelConfig)
    return hot_decoder(config, seed)


def is_free(engine: gu.Engine) -> bool:
    """Whether no block is held, once the engine's thread has done all that it was asked before."""
    done = threading.Event()
    engine._worker.do(done.set)
    assert done.wait(60)
    return engine._pool.available == engine._pool.count
