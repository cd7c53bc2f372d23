"""Files and batches: requests in a file, answered at low priority and journaled on disk."""
