"""Training: examples, batches, adapters."""
