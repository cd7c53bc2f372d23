"""Anthropic's Messages API, on the chat of server/openai: requests become chats, responses become blocks and events."""
