"""What a text costs by its logits."""

from typing import Any

import numpy as np
import numpy.typing as npt


def nats_of(text: list[int], logits_tv: npt.NDArray[Any]) -> float:
    """Of all tokens but the first. logits_tv: (tokens, vocabulary), behind each token those of the next."""
    logits_tv = logits_tv[:-1] - logits_tv[:-1].max(axis=1, keepdims=True)
    chosen_t = logits_tv[range(len(text) - 1), text[1:]]
    return float((np.log(np.exp(logits_tv).sum(axis=1)) - chosen_t).sum(dtype=np.float64))
