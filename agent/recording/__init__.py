"""Recording: one append-only journal file an episode."""
