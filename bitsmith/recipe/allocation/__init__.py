"""Allocation: which type each tensor gets, so that the model loses least in a given number of bytes."""
