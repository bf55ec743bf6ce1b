"""The operations that blocks consist of: attention, gated MLP, mixture of experts. One file each."""
