"""What the study will run and about how long that takes: `agiqa plan`.

What is to run comes from DVC (`pipeline.study.pending`), how much from the data (`pipeline.study.sizes`), and how fast
from a few seconds of the real work on this machine (`pipeline.study.rates`). The sum is a forecast: it takes what else
the machine does now for what it will do then, and a training of several processes for one of a single one.
"""

import argparse
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.params import Params, load_params
from pipeline.study.pending import Step, pending

if TYPE_CHECKING:
    from pipeline.study.rates import Rates
    from pipeline.study.sizes import Size

SECONDS, SHORT = 2.0, 0.4  # to spend on measuring each kind of work
LEAST, MOST = 0.7, 1.6  # the range that is told, as multiples of the forecast
COPY = 100e6  # bytes a second of copying, hashing and unpacking
LIGHT = 0.4  # of the start of a stage with a network, what one without takes
PICTURES = 3  # kinds of images that a gallery shows
FAMILIAR = 1000  # images of training at most that say what is familiar
ORDER = (
    "code", "download", "preprocess", "split", "features", "train", "train_random", "index", "baseline", "evaluate",
    "audit", "report", "mirror",
)  # fmt: skip


@dataclass
class Line:
    """What one kind of stage comes to.

    Attributes:
        stage: As dvc.yaml calls it.
        runs: How many of it run.
        cached: How many come from DVC's cache.
        seconds: On the clock, all runs together.
        work: What they do, in words.
        disk: Bytes that they write, DVC's copies included.
    """

    stage: str
    runs: int = 0
    cached: int = 0
    seconds: float = 0.0
    work: Counter[str] = field(default_factory=Counter)
    disk: float = 0.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `agiqa plan`."""
    parser.add_argument("--short", action="store_true", help="two lines, and a shorter measurement")


def run(options: argparse.Namespace) -> int:
    """Say what the study in this folder will run, and about how long."""
    params = load_params("params.yaml")
    steps = pending(params)
    waiting = [step for step in steps if not step.cached]
    name = params.study.name
    if not waiting:
        back = f": {_stages(len(steps))} from DVC's cache" if steps else ""
        _say(f"study {name}: nothing to compute{back}")
        return 0
    from pipeline.study.rates import measure  # imported here: brings in torch, and where nothing waits it costs nothing
    from pipeline.study.sizes import size_of

    sizes = {dataset: size_of(params, dataset) for dataset in params.study.datasets}
    rates = measure(params, waiting, sizes, SHORT if options.short else SECONDS)
    lines = forecast(params, steps, sizes, rates)
    total, disk = sum(line.seconds for line in lines), sum(line.disk for line in lines)
    cached = len(steps) - len(waiting)
    held = f", {cached} from DVC's cache" if cached else ""
    free = shutil.disk_usage(Path()).free
    space = f"{_bytes(disk)} of disk" + (f", and {_bytes(free)} are free: NOT ENOUGH" if disk > free else "")
    summary = f"study {name}: {_stages(len(waiting))} to run{held}; about {_range(total)}, {space}"
    if options.short:
        _say(summary)
        return 0
    for line in lines:
        notes = [f"{count:,} {what}" for what, count in line.work.items()]
        notes += [f"{line.cached} from the cache"] if line.cached else []
        took = _time(line.seconds) if line.runs else ""
        _say(f"  {line.stage:<13}{line.runs or '':>5}  {took:>8}  {', '.join(notes)}".rstrip())
    for text in _rests_on(sizes, rates):
        _say(f"  {text}")
    _say(summary)
    return 0


def forecast(params: Params, steps: Sequence[Step], sizes: "Mapping[str, Size]", rates: "Rates") -> list[Line]:
    """Return what each kind of stage comes to, in the order in which they run.

    Args:
        params: Of the study.
        steps: From `pending`.
        sizes: Of its data sets.
        rates: Of this machine.
    """
    lines = {stage: Line(stage) for stage in ORDER}
    for step in steps:
        line = lines[step.stage]
        if step.cached:
            line.cached += 1
        else:
            line.runs += 1
            _add(line, step, params, sizes, rates)
    return [line for line in lines.values() if line.runs or line.cached]


def _rests_on(sizes: "Mapping[str, Size]", rates: "Rates") -> Iterator[str]:
    """Yield in words what a forecast rests on."""
    for dataset, size in sizes.items():
        windows = f", {rates.windows(size):.0f} windows each" if rates.rule is not None else ""
        yield f"{dataset}: {size.images:,} images ({size.known}){windows}"
    measured = [f"{variant} trains with {1 / step:,.1f} images/s" for variant, step in rates.step.items()]
    measured += [f"scoring {1 / rates.window:,.0f} windows/s"] if rates.window else []
    if measured:
        yield f"measured on {rates.device}: {', '.join(measured)}"


def _add(line: Line, step: Step, params: Params, sizes: "Mapping[str, Size]", rates: "Rates") -> None:
    """Add one run of a stage."""
    from pipeline.training.baselines import passes

    size = sizes[step.item[0]] if step.item else None
    parts = size.subsets(params) if size is not None else {}
    few = params.validation.windows
    if step.stage in ("code", "split", "index"):
        line.seconds += LIGHT * rates.start
    elif step.stage == "download":
        line.work["images"] += size.images
        drawn = params.datasets[step.item[0]].reader == "demo"
        line.seconds += LIGHT * rates.start + (size.images * rates.draw if drawn else 0) + 3 * size.files / COPY
        line.disk += 2 * size.files
    elif step.stage == "preprocess":
        line.work["images"] += size.images
        line.seconds += rates.start + size.images * rates.decode + 3 * size.pixels / COPY
        line.disk += 2 * size.pixels
    elif step.stage == "features":
        needed = passes(params.study.baselines)
        line.work["images"] += size.images
        line.seconds += rates.start
        line.seconds += size.images * rates.statistics if "statistics" in needed else 0
        line.seconds += size.images * rates.windows(size) * rates.tower if "tower" in needed else 0
        line.disk += 2 * size.images * 8000
    elif step.stage in ("train", "train_random"):
        section = params.train_for(step.item[1])
        selecting = parts["validation"] + (parts["test"] if section.select_on == "test" else 0)
        line.work["epochs"] += section.epochs
        line.work["training images"] += section.epochs * parts["train"]
        epoch = parts["train"] * rates.step[step.item[1]] + selecting * rates.windows(size, few) * rates.window
        seen = min(FAMILIAR, parts["train"])
        calibration = parts["validation"] * rates.windows(size) + seen * rates.windows(size, few)
        line.seconds += rates.start + section.epochs * epoch + calibration * rates.window
        line.disk += 2 * section.epochs * rates.checkpoint
    elif step.stage == "baseline":
        rounds = len(params.study.rounds)
        line.work["rounds"] += rounds
        trees = params.baselines.handcrafted.max_iterations if step.item[1] == "handcrafted" else 0
        line.seconds += 2 * LIGHT * rates.start + rounds * (LIGHT * rates.start / 2 + trees * rates.tree)
    elif step.stage == "evaluate":
        tested = {name: sizes[name].subsets(params)["test"] for name in params.study.datasets}
        line.work["images"] += sum(tested.values())
        shown = PICTURES * params.evaluate.gallery  # of which each is scored once more for its map
        scored = sum(tested[name] * rates.windows(sizes[name]) for name in tested) + shown * rates.windows(size)
        line.seconds += rates.start + scored * rates.window
        line.disk += 2 * 500_000
    elif step.stage == "audit":
        epochs = params.train_for(step.item[1]).epochs
        line.work["images"] += parts["test"] * (3 + 2 * epochs)
        scored = parts["test"] * (3 * rates.windows(size) + 2 * epochs * rates.windows(size, few))
        line.seconds += 2 * rates.start + scored * rates.window
        line.disk += 2 * 500_000
    elif step.stage == "report":
        line.seconds += 2 * rates.start + 0.3 * rates.start * len(params.study.methods) * len(params.study.datasets)
        line.disk += 2 * 5_000_000
    elif step.stage == "mirror":
        line.seconds += 2 * rates.start + 0.1 * rates.start * len(params.study.run_names())


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _stages(count: int) -> str:
    return f"{count} stage" + "s" * (count != 1)


def _range(seconds: float) -> str:
    """Return a forecast as a range, such as `4 to 9 min`."""
    low, high = LEAST * seconds, MOST * seconds
    unit, name = next(
        (unit, name) for unit, name in ((3600, "h"), (60, "min"), (1, "s")) if high >= 2 * unit or unit == 1
    )
    shown = [
        f"{value / unit:.1f}" if value / unit < 3 and unit > 1 else f"{value / unit:,.0f}" for value in (low, high)
    ]
    return f"{shown[0]} to {shown[1]} {name}"


def _time(seconds: float) -> str:
    return (
        f"{seconds / 3600:.1f} h"
        if seconds >= 5400
        else f"{seconds / 60:.1f} min"
        if seconds >= 90
        else f"{seconds:.0f} s"
    )


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"
