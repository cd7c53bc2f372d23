"""The OpenAI-style HTTP interface: what is read from a request and how an answer is written."""
