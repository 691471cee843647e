"""Whether two versions of an output are the same."""
