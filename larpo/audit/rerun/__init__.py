"""Nodes executed again, in a clean clone."""
