"""What a node stands in: its record, its scratch, its files, its processes."""
