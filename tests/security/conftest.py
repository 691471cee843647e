"""The finished run that the tests of bad input spoil too; a terminal at which nobody answers."""

import builtins

import pytest

from tests.bad_input.conftest import workspace

__all__ = ["workspace"]


@pytest.fixture
def nobody_is_asked(monkeypatch):
    """transformers would ask at the terminal where it is not told."""
    monkeypatch.setattr(builtins, "input", lambda *args: pytest.fail(f"asked at the terminal: {args}"))
