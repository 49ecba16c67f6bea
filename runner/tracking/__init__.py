"""Where runs are tracked: MLflow, or nowhere."""
