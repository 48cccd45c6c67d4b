"""The model registry: MLflow, and what this project keeps in it."""
