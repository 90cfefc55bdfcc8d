"""Name what `evaluate` reads of exactly this study: in each round the prepared data, and how it judges.

`evaluate` scores a model on every data set of the study and so depends on all of them. DVC can name one folder for
that, and a folder also holds what other rounds and earlier studies left there; a small file a round holds only what
counts. The `evaluate` section of params.yaml stands there too: hundreds of stages depend on it, and DVC would read
params.yaml anew for each of them, in every `dvc repro`. What only baselines read stands in a file of its own.
"""

import argparse
from collections.abc import Sequence

from tqdm import tqdm

from pipeline.files import file_md5, replaced_folder, write_json
from pipeline.layout import INDEX, MANIFEST, PIXELS, PREPARED, features_path, input_paths
from pipeline.params import load_params


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", default="params.yaml")
    arguments = parser.parse_args(argv)
    params = load_params(arguments.params)
    datasets = params.study.datasets
    prepared = {
        dataset: {name: file_md5(PREPARED / dataset / name) for name in (MANIFEST, PIXELS)}
        for dataset in tqdm(datasets, "index", unit="data set", dynamic_ncols=True)
    }
    with replaced_folder(INDEX) as folder:
        features = {dataset: file_md5(features_path(dataset)) for dataset in datasets}
        write_json(folder / "features.json", features)
        for number in params.study.rounds:
            splits = {dataset: file_md5(input_paths(dataset, number)[1]) for dataset in datasets}
            index = {"prepared": prepared, "splits": splits, "evaluate": params.evaluate.model_dump()}
            write_json(folder / f"round-{number}.json", index)


if __name__ == "__main__":
    main()
