"""The mirror of the study's files in MLflow; the wing that knows MLflow."""
