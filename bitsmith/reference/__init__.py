"""The built-in model and texts."""
