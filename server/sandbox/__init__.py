"""Worker processes with limits of time and memory, for input that is not trusted."""
