"""Ollama's API: its requests become chats and completions, and its responses are lines of JSON."""
