"""From scored responses to the ordered lists that training reads (Section 3.3)."""
