"""Opening what a user names as a model: its files, architecture and tokenizer."""
