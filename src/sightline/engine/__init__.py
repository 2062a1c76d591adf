"""One honest pass: what a layer said, how the score depends on it, and permission to ask again."""
