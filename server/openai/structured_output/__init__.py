"""JSON schemas and grammars: what is enforced, and how it becomes a grammar for the engine."""
