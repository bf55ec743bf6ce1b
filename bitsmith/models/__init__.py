"""Opens a model that the user names: its files, architecture and tokenizer."""
