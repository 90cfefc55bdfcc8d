"""Check one data set, decode every image once, and draw its data card."""

import argparse
from collections.abc import Sequence

from pipeline.claims import claim
from pipeline.data import card
from pipeline.data.pixels import open_prepared
from pipeline.data.prepare import prepare
from pipeline.layout import CARD, PREPARED, RAW
from pipeline.params import load_params


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--params", default="params.yaml")
    arguments = parser.parse_args(argv)
    settings = load_params(arguments.params).dataset(arguments.dataset)
    out = PREPARED / arguments.dataset
    with claim(out):  # and not a folder that replaces it: problems.csv must stay for its reader where the stage stops
        prepare(
            arguments.dataset,
            settings.reader,
            RAW / arguments.dataset,
            out,
            settings.allow_problems,
            labels_file=settings.labels,
            scale=settings.scale,
            raters=settings.raters,
        )
        manifest, pack = open_prepared(out)
        card.data_card(manifest, pack, out / CARD, arguments.dataset)


if __name__ == "__main__":
    main()
