"""One request from admission to its last token, whichever endpoint it came through."""
