"""The next token from the logits: parameters, masks, penalties, truncation and the draw."""
