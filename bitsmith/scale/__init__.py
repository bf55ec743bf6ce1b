"""The work of a run as a graph of small tasks, and what runs such a graph: this process, others, a cluster."""
