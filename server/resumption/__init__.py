"""Responses that outlive the connections of their clients."""
