"""Memory for what layers remember; who has asked for more than there is reads one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from groundup.hardware import usable_memory_bytes


@contextmanager
def memory_for(setting: str, tokens: int, size_bytes: int, device: torch.device) -> Iterator[None]:
    """Within it memory for a cache is allocated, and nothing else is done.

    setting: of the engine, as it is called in the sentence. tokens: there is to be room for. size_bytes: of that, at
    least. Raises ValueError where there is not as much, caused by what the allocation raised; also where it would not
    raise, as systems promise memory that they do not have and end the process when it is written to.
    """
    try:
        if size_bytes > memory_bytes(device):
            raise MemoryError(f"{size_bytes} bytes are more than there are")
        yield
    except (MemoryError, OverflowError, RuntimeError) as error:  # PyTorch's are RuntimeErrors, on every device
        place = "this machine" if device.type == "cpu" else str(device)
        raise ValueError(
            f"{setting}: room for {tokens} tokens takes at least {_shown(size_bytes)} of memory, and {place} has "
            f"{_shown(memory_bytes(device))} in all; give the engine fewer"
        ) from error


def memory_bytes(device: torch.device) -> int:
    """Memory that a device has, used or not."""
    return usable_memory_bytes() if device.type == "cpu" else torch.cuda.get_device_properties(device).total_memory


def _shown(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:,.1f} GiB"
