"""Name the code that each stage runs: its script and every module of ours that it imports, in one small file a stage.

A stage of dvc.yaml depends on its own file here, so that an edit reruns exactly the stages whose results it can touch.
Listing the modules in dvc.yaml instead would say the same by hand, and make dvc.lock, which DVC reads and writes around
every stage, three times as long.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pipeline.code import code_of
from pipeline.files import replaced_folder, write_json
from pipeline.layout import CODE


def main(argv: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    with replaced_folder(CODE) as folder:
        for script in sorted(Path("stages").glob("[!_]*.py")):
            write_json(folder / f"{script.stem}.json", code_of(script))


if __name__ == "__main__":
    main()
