"""Log-probabilities and trainers."""
