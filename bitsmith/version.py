"""The version of bitsmith, as files made by it record it."""

__version__ = "0.1.0"
