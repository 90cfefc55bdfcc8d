"""Scores of anyone's own images: gathering, scoring in bulk, comparing, writing."""
