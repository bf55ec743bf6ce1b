"""Quantized layers inside of any torch module; the public door is `bitsmith.torch`."""
