"""Planner: finds which formats of a model fit a device, before anything is downloaded or quantized."""
