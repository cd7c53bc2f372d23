"""Finding a model by its name, and fetching it."""
