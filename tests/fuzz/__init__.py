"""Damaged and hostile inputs through every command: `make fuzz`, and a short run of it in the tests."""
