"""Name the prepared data of exactly this study's data sets.

`evaluate` scores a model on every data set of the study and so depends on all of them. DVC can name one folder for that,
and a folder also holds what earlier studies left there; this small file holds only what counts.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pipeline.files import file_md5, write_json
from pipeline.params import load_params


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", default="params.yaml")
    parser.add_argument("--data", type=Path, default=Path("data"))
    arguments = parser.parse_args(argv)
    study = load_params(arguments.params).study
    index = {
        dataset: {
            "manifest": file_md5(arguments.data / "prepared" / dataset / "manifest.parquet"),
            "features": file_md5(arguments.data / "features" / f"{dataset}.npz"),
            "splits": {
                str(round_index): file_md5(arguments.data / "splits" / dataset / f"round-{round_index}.csv")
                for round_index in study.rounds
            },
        }
        for dataset in study.datasets
    }
    write_json(arguments.data / "index.json", index)


if __name__ == "__main__":
    main()
