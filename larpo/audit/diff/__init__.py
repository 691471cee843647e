"""Why the numbers of two runs differ."""
