"""Compute what the study's baselines read of every image; see `pipeline.study.features`.

None of it depends on a label or a split, so one pass serves all rounds. What a pass costs an image stands in a file of
its own: each baseline is charged for the one that it needs, and the features stay equal bytes for equal inputs.
"""

import argparse
from collections.abc import Sequence

from pipeline.claims import claim
from pipeline.files import write_atomically, write_json
from pipeline.layout import feature_times_path, features_path
from pipeline.params import load_params
from pipeline.study.features import compute


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--params", default="params.yaml")
    arguments = parser.parse_args(argv)
    params, out = load_params(arguments.params), features_path(arguments.dataset)
    with claim(out):
        features, times = compute(params, arguments.dataset)
        write_json(feature_times_path(arguments.dataset), times)
        write_atomically(out, features)


if __name__ == "__main__":
    main()
