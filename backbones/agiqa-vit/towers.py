"""Make the in-house image tower known to timm; what it is stands in `pipeline/model/stems.py`, which the product loads."""

from pipeline.model.stems import know_stems

know_stems()
