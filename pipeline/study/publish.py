"""Make a finished study's models ready to give away: their checkpoints, and a card that says what they are worth.

    agiqa publish agiqa3k --round 0 --method dcmpln --method handcrafted --out models/agiqa3k

Everything on the card is read from the study's own files, so that it cannot say more than the study found. Equal
studies give equal bytes.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.files import file_md5, replaced_folder, write_atomically, write_json
from pipeline.layout import (
    EVALUATE,
    METRICS,
    MODEL_CARD,
    PREPARED,
    RECORD,
    RUNS,
    SPLITS,
    TRAIN,
    StudyError,
    backbone_label,
    bars_champion,
    checkpoint_path,
    input_paths,
    rated_by,
    run_folder,
)
from pipeline.model.checkpoint_file import calibration_of, familiarity_of, read_checkpoint, write_checkpoint
from pipeline.study.generators import error_of


def publish(root: Path, dataset: str, methods: Sequence[str], round_index: int, out: Path) -> dict[str, Any]:
    """Write the models of one round and their card, and return the card's numbers.

    Args:
        root: Of the repository with the finished study.
        dataset: Whose models.
        methods: Variants and baselines.
        round_index: The round whose split they were trained on; the others say how much that matters.
        out: Folder to write: `<method>.safetensors`, card.json and README.md.

    Raises:
        StudyError: If a run is not there, not clean or not evaluated, or its checkpoint is not the one judged.
    """
    card = {
        "dataset": json.loads((root / PREPARED / dataset / "card.json").read_text(encoding="utf-8")),
        "round": round_index,
        "split": _split(root, dataset, round_index),
        "models": [_model(root, dataset, method, round_index) for method in methods],
    }
    card["dataset"].pop("notes", None)
    with replaced_folder(out) as folder:
        for model in card["models"]:
            checkpoint = root / model.pop("from")
            record, arrays = read_checkpoint(checkpoint)
            familiar = arrays.get("familiar.mean")
            familiarity = None if familiar is None else familiarity_of(checkpoint, record, arrays, len(familiar))
            kept = {name: values for name, values in arrays.items() if not name.startswith("familiar.")}
            said = record | {name: model[name] for name in ("generator_error", "generators")}
            write_checkpoint(folder / model["file"], kept, said, calibration_of(record), familiarity)
            model["md5"] = file_md5(folder / model["file"])
        write_json(folder / MODEL_CARD, card)
        write_atomically(folder / "README.md", card_text(card).encode())
    return card


def card_text(card: Mapping[str, Any]) -> str:
    """Return the card for people, as Markdown."""
    return render("card.md.j2", card=card, best=best_of(card))


def best_of(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a card says of its best model by SRCC on validation images, the first of equals."""
    return max(card["models"], key=lambda model: model["validation"]["srcc"])


def render(template: str, **values: Any) -> str:
    """Return one of the templates beside this module, filled in."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {
        "number": _number,
        "percent": lambda share: "-" if share is None else f"{100 * share:.0f} %",
    }
    return environment.get_template(template).render(**values)


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _split(root: Path, dataset: str, round_index: int) -> dict[str, Any]:
    """Return what the audit found of a round, and the images that anyone may test the models on."""
    audit = json.loads((root / SPLITS / dataset / "audit.json").read_text(encoding="utf-8"))
    path = root / input_paths(dataset, round_index)[1]
    split = pd.read_csv(path, dtype=str)
    test = sorted(split.loc[split["subset"] == "test", "image_id"])
    return audit["rounds"][str(round_index)] | {"md5": file_md5(path), "test_images": test}


def _model(root: Path, dataset: str, method: str, round_index: int) -> dict[str, Any]:
    """Return what the card says of one model, and under `from` where its checkpoint lies."""
    runs = sorted((root / RUNS / dataset / method).glob("round-*"), key=lambda path: int(path.name.partition("-")[2]))
    chosen = root / run_folder(dataset, method, round_index)
    if chosen not in runs:
        raise StudyError(f"{chosen} does not exist: the study has no such run; run it with `dvc repro`")
    record = _read(chosen / TRAIN / RECORD)
    if bars := bars_champion(record):
        raise StudyError(f"{chosen} is not to be given away: {', '.join(bars)}")
    checkpoint = checkpoint_path(chosen / TRAIN, record["selected_epoch"])
    if not checkpoint.is_file() or file_md5(checkpoint) != record["checkpoint_md5"]:
        raise StudyError(f"{checkpoint} is not the checkpoint that was judged: run `dvc repro`")
    found = [_read(run / EVALUATE / METRICS) for run in runs]
    own = found[runs.index(chosen)]
    error = error_of(own["generator"])
    return {
        "method": method,
        "file": f"{method}.safetensors",
        "from": checkpoint.relative_to(root).as_posix(),
        "target": record["target"],
        "rated_by": rated_by(record),
        "backbone": None if method == "handcrafted" else backbone_label(record["backbone"]),
        "images": record["images"],
        "validation": own["validation"],
        "test": own["test"],
        "generator": own["generator"],
        "generator_error": None if error is None else error.value,
        "generators": None if error is None else error.generators,
        "rounds": {
            "number": len(found),
            **{name: _mean(found, name) for name in ("srcc", "plcc", "rmse_calibrated", "coverage")},
        },
    }


def _mean(found: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [entry["test"].get(name) for entry in found]
    return None if None in values else fmean(values)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise StudyError(f"{path} does not exist: the study is not finished; run `dvc repro`")
    return json.loads(path.read_text(encoding="utf-8"))


# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `agiqa publish` takes."""
    parser.add_argument("dataset", metavar="DATASET", help="of the finished study in this folder")
    parser.add_argument(
        "--method", action="append", required=True, metavar="NAME", help="a variant or a baseline; again for more"
    )
    parser.add_argument("--round", type=int, default=0, metavar="N", help="whose split they learned on; default: 0")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write, such as models/agiqa3k"
    )


def run(arguments: argparse.Namespace) -> int:
    """Do `agiqa publish` and return its exit status; errors are raised."""
    publish(Path.cwd(), arguments.dataset, arguments.method, arguments.round, arguments.out)
    return 0
