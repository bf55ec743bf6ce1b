"""What a run keeps of its work beside its output, so that the same command continues after a kill."""
