"""Gives a file to the runtimes that people use, and proves there that it works; publishes a folder."""
