"""The names, files and scripts of msModelSlim, on slimrun's own implementation."""
