"""Fetch one data set, or generate the embedded one, into data/raw."""

import argparse
import os
from collections.abc import Sequence

from pipeline.data import demo
from pipeline.data.archives import CHECKSUMS, fetch
from pipeline.files import replaced_folder
from pipeline.layout import RAW, repository_root
from pipeline.params import load_params


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--params", default="params.yaml")
    arguments = parser.parse_args(argv)
    params, dataset = load_params(arguments.params), arguments.dataset
    settings, out = params.dataset(dataset), RAW / dataset
    if settings.reader == "demo" and settings.source is None:
        with replaced_folder(out) as folder:
            demo.generate(folder, **params.demo.model_dump())
        return
    root = repository_root()
    fetch(
        dataset,
        out,
        **settings.model_dump(include={"source", "archive", "sha256", "google_drive_id"}),
        data_folder=os.environ.get("AGIQA_DATA"),
        downloads=root / ".work" / "downloads",
        root=root,
        checksums=None if settings.reader == "folder" else root / CHECKSUMS,
    )


if __name__ == "__main__":
    main()
