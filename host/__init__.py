"""What we ask of the operating system. Imports none of ours; all may import it."""
