"""Weights on disk: the files of a model's folder, and whether what they hold is the model's."""
