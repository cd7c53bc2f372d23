"""The life of a request from admission to its last token, the same for all endpoints."""
