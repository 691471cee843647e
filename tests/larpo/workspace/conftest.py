"""The small DVC project that the flows' tests run."""

from tests.flows.conftest import project, template

__all__ = ["project", "template"]
