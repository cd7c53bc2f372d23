"""Metrics, logs, spans and the record of each request."""
