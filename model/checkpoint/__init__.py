"""Checkpoints: weights on disk, read, renamed and checked tensor by tensor. Each format has its own file."""

ALL_ROWS = slice(None)  # of a tensor


class BrokenCheckpoint(ValueError):
    """A model file that is damaged, incomplete or contradicts itself; the message names the file and the place."""
