"""Split one data set for every round of the study, and audit what the subsets share."""

import argparse
from collections.abc import Sequence

import pandas as pd

from pipeline.data.splits import audit_rounds, find_groups, split_round
from pipeline.files import replaced_folder, write_json
from pipeline.layout import MANIFEST, PREPARED, SPLITS
from pipeline.params import load_params


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--params", default="params.yaml")
    arguments = parser.parse_args(argv)
    params, dataset = load_params(arguments.params), arguments.dataset
    manifest = pd.read_parquet(PREPARED / dataset / MANIFEST)
    settings = params.split.model_dump(include={"test_fraction", "validation_fraction", "seed"})
    groups = find_groups(manifest)
    splits = {
        number: split_round(manifest, groups, number, rule=params.split.rule, **settings)
        for number in params.study.rounds
    }
    with replaced_folder(SPLITS / dataset) as folder:
        for number, split in splits.items():
            split.to_csv(folder / f"round-{number}.csv", index=False)
            random = split_round(manifest, groups, number, rule="random", **settings)  # for `study.audit` alone
            random.to_csv(folder / f"random-{number}.csv", index=False)
        write_json(folder / "audit.json", audit_rounds(manifest, splits, dataset, params.split.rule, **settings))


if __name__ == "__main__":
    main()
