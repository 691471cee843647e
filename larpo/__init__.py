"""The method: objectives, lists, rewards and evaluation as pure functions (no paths, no orchestration)."""
