"""The machine: cores, memory, progress, and the C++ core."""
