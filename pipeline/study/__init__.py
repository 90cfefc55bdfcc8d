"""From params.yaml and files to runs: what a training or a baseline needs, and how it is judged."""
