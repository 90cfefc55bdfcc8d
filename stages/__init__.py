"""The stages of dvc.yaml, each a short process of its own: `python -m stages.train --help`."""

from pipeline.startup import spare_collections

spare_collections()
