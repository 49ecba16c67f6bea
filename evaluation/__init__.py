"""Measuring a model through the small protocol of `evaluation.base`."""
