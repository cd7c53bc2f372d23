"""OpenAI-style endpoints: completions, chat, responses, embeddings and their helpers."""
