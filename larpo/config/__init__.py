"""Parameters: what may stand in params.yaml, by shape alone."""
