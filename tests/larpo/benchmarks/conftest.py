"""What the tests of benchmarks share."""

import pytest


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    """The openai client's first pause, which is doubled before each further try: 10 ms in place of half a second."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
