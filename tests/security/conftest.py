"""The finished run that the tests of bad input spoil too."""

from __future__ import annotations

from tests.bad_input.conftest import workspace

__all__ = ["workspace"]
