"""HTTP itself: framing, bodies, errors, event streams, authentication, limits, shutdown."""
