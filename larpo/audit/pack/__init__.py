"""A finished run as one file, and back."""
