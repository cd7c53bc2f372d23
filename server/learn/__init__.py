"""The page's lessons: traces of the served model, and the scheduler without a model."""
