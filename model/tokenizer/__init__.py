"""Text to token ids and back, for each vocabulary format."""
