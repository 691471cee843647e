"""The nodes of the graph: one module each, run as `python -m tasks.NODE`. Read → compute → write."""
