"""The small DVC project that the flows' tests run."""

from tests.flows.conftest import finished, finished_template, project, template

__all__ = ["finished", "finished_template", "project", "template"]
