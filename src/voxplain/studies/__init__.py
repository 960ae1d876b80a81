"""Work that needs both halves: explaining, effect, grounding, honesty, training and measuring."""
