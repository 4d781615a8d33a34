"""The back end contract, run where a GPU is: `make gpu`. Elsewhere every test of it is skipped.

The same tests run in the default suite for the other back ends; here only "cuda" is asked for.
"""

import pytest

from ..contract.test_backend_contract import *  # noqa: F403

pytestmark = pytest.mark.gpu


@pytest.fixture
def where() -> str:
    """Only the GPU."""
    return "cuda"
