"""What each kind of node costs."""
