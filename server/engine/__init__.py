"""The API process's side of the engine: its process, its connection and the requests in flight."""
