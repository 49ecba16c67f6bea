"""Measuring a model through the small protocol of `slimrun.evaluation.base`."""
