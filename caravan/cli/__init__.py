"""The command line: one file for each command, and what only the side of clients needs."""
