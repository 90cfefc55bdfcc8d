"""Put a model on the Hugging Face Hub: its checkpoint, what it needs, and a card that says what it is worth.

    agiqa push hf:owner/name --checkpoint auto:agiqa3k:dcmpln

What is pushed was verified before: of a finished study every hash that it recorded, of a model in models/ the one on
its card. It goes through `agiqa publish`, so that a card on the Hub says what the study found, and no more.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from pipeline.files import expanded, file_md5, file_sha256, json_bytes
from pipeline.layout import HOME, MODEL_CARD, RECORD, RUNS, StudyError, repository_root
from pipeline.model import hub
from pipeline.model.checkpoint_file import calibration_of, read_checkpoint
from pipeline.model.hub import HubError, Place
from pipeline.study.champion import find_auto, is_auto
from pipeline.study.publish import best_of, publish, render
from pipeline.study.verify import verify

TAGS = ("image-quality-assessment", "ai-generated-images", "no-reference", "agiqa")
# What a card's table calls them, the names of a run's numbers, and the Hub's.
METRICS = {"SRCC": ("srcc", "spearmanr"), "PLCC": ("plcc", "pearsonr"), "MAE": ("mae_calibrated", "mae")}


@dataclass(frozen=True)
class Parcel:
    """A model that was verified.

    Attributes:
        files: What the repository on the Hub will hold, by name: bytes, or a file that has them.
        dataset: What it was trained on.
        method: Variant or baseline.
    """

    files: dict[str, bytes | Path]
    dataset: str
    method: str


def pack(folder: Path, method: str | None, place: Place, licence: str, root: Path) -> Parcel:
    """Return one model of a folder that `agiqa publish` wrote, once it is what its card says.

    Args:
        folder: With card.json and the checkpoints.
        method: Which of them; None: the best by SRCC on validation images.
        place: Where it goes, for the card.
        licence: The Hub's name of a licence, likewise.
        root: Of the repository in which the towers' weights lie.

    Raises:
        StudyError: If the card is damaged, has no such model, or the model is not the one on it, leaks or was never
            calibrated.
        CheckpointError: If the checkpoint is damaged.
        BackboneError: If the towers' weights are not at hand, or are others.
    """
    path = folder / MODEL_CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        known = {model["method"]: model for model in card["models"]}
        about = known.get(method or best_of(card)["method"])
        dataset = card["dataset"]["dataset"]
    except (ValueError, TypeError, KeyError) as error:
        raise StudyError(f"{path} is damaged ({error}): write it anew with `agiqa publish`") from error
    if about is None:
        raise StudyError(f"{path} has no model of method {method!r}; it has: {', '.join(known)}")
    checkpoint = folder / about["file"]
    if not checkpoint.is_file() or file_md5(checkpoint) != about["md5"]:
        raise StudyError(f"{checkpoint} is not the model on its card: write both anew with `agiqa publish`")
    record = read_checkpoint(checkpoint)[0]
    if record["leaks"]:
        raise StudyError(f"{checkpoint} is not to be given away: {', '.join(record['leaks'])}")
    if calibration_of(record) is None:
        raise StudyError(f"{checkpoint} was never calibrated, so its scores mean nothing to others: run `dvc repro`")
    towers, said = _towers(record, root)
    card = {**card, "models": [{**about, "file": hub.CHECKPOINT}]}
    files: dict[str, bytes | Path] = {hub.CHECKPOINT: checkpoint} | ({} if towers is None else {hub.WEIGHTS: towers})
    config = {
        "format": hub.FORMAT, "library_name": hub.LIBRARY, "dataset": dataset, "method": about["method"],
        "target": record["target"], "mos_low": record["mos_low"], "mos_high": record["mos_high"],
        "files": {name: {"sha256": file_sha256(file)} for name, file in files.items()},
    }  # fmt: skip
    text = _card_text(card, place, licence, said, own_towers=towers is not None)
    files |= {hub.CONFIG: json_bytes(config), hub.CARD: json_bytes(card), hub.README: text.encode()}
    return Parcel(files, dataset, about["method"])


def _towers(record: Mapping[str, Any], root: Path) -> tuple[Path | None, str]:
    """Return the weights that travel with a checkpoint, if any, and what its card says of weights.

    Those of one's own do, once they are those that it was trained on. Published weights are others', and are fetched
    from where they were published; whatever is no safetensors file might be a pickle.
    """
    backbone = record["backbone"]
    if backbone is None or backbone.get("file") is None:
        tag = None if backbone is None else backbone["pretrained"]
        return None, f"The weights `{tag}` of {backbone['name']} are fetched by open_clip on first use." if tag else ""
    if backbone["origin"] == "in-house" and backbone["file"].endswith(".safetensors"):
        from pipeline.model.loading import rebuild_backbone

        places = [folder / backbone["file"] for folder in dict.fromkeys([root, HOME])]
        rebuild_backbone(backbone, folders=list(dict.fromkeys([root, HOME])))
        return next(place for place in places if place.is_file()), ""
    name = Path(backbone["file"]).name
    return None, (
        f"The weights of {backbone['name']} do not come with it: give the file that was called `{name}` as "
        f"`backbone_file` (`--backbone-file`); the hash of its tensors must be `{backbone['weights_sha256']}`."
    )


def _card_text(card: Mapping[str, Any], place: Place, licence: str, weights: str, *, own_towers: bool) -> str:
    from importlib.metadata import version

    from huggingface_hub import EvalResult, ModelCardData

    (model,), dataset = card["models"], card["dataset"]["dataset"]
    results = [
        EvalResult(
            task_type="image-quality-assessment", dataset_type=dataset, dataset_name=dataset, dataset_split="test",
            metric_type=theirs, metric_name=name, metric_value=round(model["test"][ours], 4),
        )
        for name, (ours, theirs) in METRICS.items()
        if model["test"].get(ours) is not None
    ]  # fmt: skip
    metadata = ModelCardData(
        license=licence,
        library_name=hub.LIBRARY,
        tags=[*TAGS, dataset, model["method"]],
        metrics=[result.metric_type for result in results],
        model_name=place.repo.partition("/")[2],
        eval_results=results,
    )
    return render(
        "hub_card.md.j2", card=card, best=model, place=place, version=version(hub.LIBRARY), weights=weights,
        own_towers=own_towers, metadata=metadata.to_yaml().strip(),
    )  # fmt: skip


def send(parcel: Parcel, place: Place, *, private: bool, tag: str | None, message: str) -> str:
    """Put a parcel on the Hub as one commit, in a repository made if there is none, and return the commit's address.

    Args:
        parcel: From `pack`.
        place: Where; its revision is a branch, made if there is none.
        private: Whether a new repository is; else it is what its owner's settings say.
        tag: To give the commit, or None.
        message: Of the commit.

    Raises:
        HubError: If the Hub cannot be reached or does not take it, or `private` is said of a repository that is not.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    client = hub.api()
    with hub.explained(place, writing=True):
        client.create_repo(place.repo, private=private or None, exist_ok=True)
        if private and not client.repo_info(place.repo).private:
            raise HubError(f"{place.repo} is there and public: make it private in its settings, or leave out --private")
        if place.revision is not None:
            client.create_branch(place.repo, branch=place.revision, exist_ok=True)
        held = set(client.list_repo_files(place.repo, revision=place.revision))
        stale = sorted(held & set(hub.FILES) - parcel.files.keys())
        operations = [CommitOperationDelete(name) for name in stale]
        operations += [CommitOperationAdd(name, content) for name, content in sorted(parcel.files.items())]
        try:
            commit = client.create_commit(place.repo, operations, commit_message=message, revision=place.revision)
        except ValueError as error:
            if "Invalid metadata in README.md" not in str(error):
                raise
            raise HubError(f"the Hub refuses the card: {' '.join(str(error).split())}") from error
        except RuntimeError as error:  # around what went wrong with one of several large files
            if error.__cause__ is None:
                raise
            raise error.__cause__ from error
        if tag is not None:
            client.create_tag(place.repo, tag=tag, revision=commit.oid)
    return str(commit.commit_url)


def push(
    place: Place,
    checkpoint: str,
    root: Path,
    *,
    licence: str = "mit",
    private: bool = False,
    tag: str | None = None,
    message: str | None = None,
) -> tuple[Parcel, str]:
    """Verify a model and put it on the Hub.

    Args:
        place: Where.
        checkpoint: `auto`, `auto:<data set>` or `auto:<data set>:<method>` for the finished study under `root`, or else
            for models/; or a folder that `agiqa publish` wrote, or a checkpoint in it.
        root: Of the repository.
        licence: The Hub's name of one.
        private: As `send`.
        tag: Likewise.
        message: Likewise; None says what is pushed.

    Returns:
        What was pushed, and the commit's address.

    Raises:
        StudyError: If there is no such model, or it is not what was verified.
        HubError: As `send`.
    """
    with TemporaryDirectory() as temporary:
        folder, method = _source(checkpoint, root, Path(temporary, "published"))
        parcel = pack(folder, method, place, licence, root)
        said = message or f"{parcel.method}, trained on {parcel.dataset}"
        return parcel, send(parcel, place, private=private, tag=tag, message=said)


def _source(checkpoint: str, root: Path, out: Path) -> tuple[Path, str | None]:
    """Return the folder with a card that a model comes from, and its method."""
    if is_auto(checkpoint):
        found = find_auto(checkpoint, root)
        if (found.parent / MODEL_CARD).is_file():  # of models/
            return found.parent, found.stem
        train = found.parents[1]
        record = json.loads((train / RECORD).read_text(encoding="utf-8"))
        _refuse_what_changed(root)
        publish(root, record["dataset"], [record["method"]], record["round"], out)
        return out, record["method"]
    path = expanded(checkpoint)
    if path.is_dir() and (path / MODEL_CARD).is_file():
        return path, None
    if path.is_file() and (path.parent / MODEL_CARD).is_file():
        return path.parent, path.stem
    if not path.exists():
        raise StudyError(f"{path} does not exist")
    raise StudyError(
        f"{path} has no {MODEL_CARD} beside it, so nothing says what it is worth: push the model of a finished study "
        f"(auto:DATASET:METHOD), or what `agiqa publish` wrote"
    )


def _refuse_what_changed(root: Path) -> None:
    checked = tqdm(verify(root), "checking", unit="hash", delay=1, dynamic_ncols=True)
    faults = [finding for finding in checked if finding.fault]
    if faults:
        raise StudyError(
            f"{len(faults)} of the hashes that the study recorded no longer match, such as {faults[0].path}, which "
            f"{faults[0].fault}: `agiqa verify` names all; what is not verified is not pushed"
        )


# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `agiqa push` takes."""
    parser.add_argument("place", metavar="hf:OWNER/NAME", help="the repository, made if it is new; @BRANCH may follow")
    parser.add_argument(
        "--checkpoint",
        default="auto",
        metavar="WHICH",
        help="auto (default), auto:DATASET[:METHOD] of the finished study in this folder, or else of models/; or a "
        f"folder with a {MODEL_CARD}, such as models/agiqa3k, or a checkpoint in it",
    )
    parser.add_argument(
        "--license", default="mit", metavar="ID", help="the Hub's name of it; default: mit, this project's"
    )
    parser.add_argument("--private", action="store_true", help="a new repository is; else as its owner's settings say")
    parser.add_argument("--tag", metavar="NAME", help="to give what is pushed, such as v1")
    parser.add_argument("--message", metavar="TEXT", help="of the commit; default: what is pushed")


def run(arguments: argparse.Namespace) -> int:
    """Do `agiqa push` and return its exit status; errors are raised."""
    place = Place.of(arguments.place)
    root = repository_root()
    root = root if (root / RUNS).is_dir() else HOME
    parcel, commit = push(
        place, arguments.checkpoint, root, licence=arguments.license, private=arguments.private, tag=arguments.tag,
        message=arguments.message,
    )  # fmt: skip
    sys.stderr.write(
        f"pushed {parcel.method}, trained on {parcel.dataset}, verified: {commit}\n"
        f"anyone who may read it scores with: agiqa score PATH --checkpoint {place}\n"
    )
    return 0
