"""One decoder that any architecture configures, and the public object around it."""
