"""Quantization arithmetic: one method a file, what they share in `base`."""
