"""Routes for operators: health, metrics, explanations, the live view and web pages."""
