"""One quantize run, from its configuration to verified files."""
