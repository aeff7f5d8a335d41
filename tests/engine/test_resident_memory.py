"""An engine that is asked for months needs no more memory than on its first day."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from resident import STATUS, bytes_kept

import groundup as gu


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="there is no /proc that says how much memory is resident")
@pytest.mark.parametrize("speculate", [None, gu.PromptLookup(shortest=1)], ids=["plain", "lookup"])
def test_ten_thousand_requests_leave_resident_memory_flat(compiled: None, speculate: gu.PromptLookup | None):
    """In a process of its own: in what other tests have freed, much could be kept that would not be seen.

    Pages come and go by some 30 bytes for each of 8000 texts.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        assert process.submit(bytes_kept, speculate).result() < 300
