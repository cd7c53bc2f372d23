"""Worker processes with time and memory limits, for untrusted input."""
