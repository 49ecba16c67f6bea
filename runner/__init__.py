"""The run: configuration, stages, results, tracking."""
