"""The API process's side of the engine: process, connection and requests in flight."""
