"""A scorer elsewhere: over HTTP, in MLflow, as an ONNX or torch.export program."""
