"""What a metric of pyiqa's says of every image of a data set, computed once and kept.

It depends on the pixels, the metric and its package, and on no label, split or round. So the scores lie in .work under
the hash of just these, where every stage of every copy of the repository finds them; DVC takes up what is made of them.
A pass that was killed goes on from its last minute.
"""

import hashlib
import io
import json
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.claims import alone
from pipeline.costs import Stopwatch, an_image, charged
from pipeline.data.pixels import open_prepared
from pipeline.files import write_atomically
from pipeline.layout import INDEX, PREPARED, PYIQA, StudyError, repository_root
from pipeline.params import Params
from pipeline.training import no_reference

EVERY = 60.0  # seconds between two times that what is done is kept


@dataclass(frozen=True)
class MetricScores:
    """Scores of a data set's images.

    Attributes:
        values: Higher is better, shape (N,), float64, in manifest order.
        about: The metric as a record tells of it: `name`, `package` and `lower_better`.
        cost: An image's, as `pipeline.costs.an_image`.
    """

    values: np.ndarray
    about: dict[str, Any]
    cost: dict[str, Any]


def metric_scores(params: Params, dataset: str, name: str) -> MetricScores:
    """Return a metric's scores of all images of a data set, from .work or made now under a progress bar.

    Args:
        params: Of the study.
        dataset: Its name.
        name: That pyiqa gives the metric.

    Raises:
        MetricError: As `pipeline.training.no_reference.load_metric`.
        StudyError: If the stage `index` has not run, or the score of an image is not finite.
    """
    package, index = no_reference.installed(), INDEX / f"round-{params.study.rounds[0]}.json"
    if not index.is_file():
        raise StudyError(f"{index} does not exist: run `dvc repro index` first")
    pixels = json.loads(index.read_text(encoding="utf-8"))["prepared"][dataset]
    made_of = [name, package, version("torch"), pixels, params.baselines.seed]
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:24]
    folder = repository_root() / ".work" / "pyiqa"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{dataset}-{name}-{key}.npz"
    with alone(folder / f"{key}.lock", path):
        if (found := _read(path)) is None or np.isnan(found.values).any():
            found = _score(params, dataset, name, package, path, found)
    return found


def _read(path: Path) -> MetricScores | None:
    if not path.is_file():
        return None
    with np.load(path) as archive:
        return MetricScores(archive["values"], *(json.loads(str(archive[part])) for part in ("about", "cost")))


def _score(
    params: Params, dataset: str, name: str, package: str, path: Path, begun: MetricScores | None
) -> MetricScores:
    """Score the images that have no score yet, and keep what is done now and then."""
    manifest, pack = open_prepared(PREPARED / dataset)
    train = params.train
    metric = no_reference.load_metric(name, device=train.device, threads=train.threads, seed=params.baselines.seed)
    about = {"name": name, "package": package, "lower_better": metric.lower_better}
    values = np.full(len(pack), np.nan) if begun is None else begun.values
    missing = np.flatnonzero(np.isnan(values))
    first, peak = len(pack) - len(missing), 0.0 if begun is None else begun.cost["peak_memory_mb"]
    watch, kept, found = Stopwatch(), time.monotonic(), begun
    bar = tqdm(missing, f"{dataset}: {PYIQA}{name}", len(pack), initial=first, unit="image", dynamic_ncols=True)
    for done, row in enumerate(bar, first + 1):
        values[row] = metric.score(pack[int(row)])
        if not np.isfinite(values[row]):
            raise StudyError(f"{PYIQA}{name} has no finite score for {manifest['image_id'].iloc[row]} of {dataset}")
        if done == len(pack) or time.monotonic() - kept > EVERY:
            spent = watch.read(on_cpu=metric.device == "cpu")
            cost = an_image(spent if begun is None else charged(spent, first, begun.cost), done)
            found = MetricScores(values, about, cost | {"peak_memory_mb": max(peak, cost["peak_memory_mb"])})
            _write(path, found)
            kept = time.monotonic()
    return found


def _write(path: Path, found: MetricScores) -> None:
    buffer = io.BytesIO()
    texts = {part: np.array(json.dumps(getattr(found, part), sort_keys=True)) for part in ("about", "cost")}
    np.savez(buffer, values=found.values, **texts)
    write_atomically(path, buffer.getvalue())
