"""Name the prepared data that one round of exactly this study reads.

`evaluate` scores a model on every data set of the study and so depends on all of them. DVC can name one folder for
that, and a folder also holds what other rounds and earlier studies left there; this small file holds only what counts.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pipeline.files import file_md5, write_json
from pipeline.params import load_params


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--round", type=int, required=True)
    parser.add_argument("--params", default="params.yaml")
    arguments = parser.parse_args(argv)
    data, name = Path("data"), f"round-{arguments.round}"
    index = {
        dataset: {
            "manifest": file_md5(data / "prepared" / dataset / "manifest.parquet"),
            "features": file_md5(data / "features" / f"{dataset}.npz"),
            "split": file_md5(data / "splits" / dataset / f"{name}.csv"),
        }
        for dataset in load_params(arguments.params).study.datasets
    }
    write_json(data / "index" / f"{name}.json", index)


if __name__ == "__main__":
    main()
