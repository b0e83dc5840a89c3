"""A first trunk for policies that see, learned on the twin's scenes before any robot records."""
