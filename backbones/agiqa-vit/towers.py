"""Make the in-house image tower known to timm: the one in `pipeline/model/stems.py`, as the product has it."""

from pipeline.model.stems import know_stems

know_stems()
