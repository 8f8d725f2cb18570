"""The model registry: MLflow versions that are checked on the way in, on the way out and before promotion."""
