"""The run's numbers computed again from its own tables."""
