"""Dense retrieval (Figure 2a)."""
