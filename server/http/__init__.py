"""HTTP: framing, bodies, errors, event streams, authentication, limits and shutdown."""
