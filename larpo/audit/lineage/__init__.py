"""Where every input came from."""
