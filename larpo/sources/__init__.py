"""Where texts come from: prompts, preference pairs, worked sums."""
