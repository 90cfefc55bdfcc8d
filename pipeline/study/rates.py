"""How fast this machine does the study's work, measured on the real configuration for a few seconds."""

import io
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from pipeline.data.decoding import opened
from pipeline.data.demo import GENERATORS, generate
from pipeline.model.backbone import Backbone
from pipeline.model.checkpoint import save_checkpoint
from pipeline.model.dcmpln import DCMPLN
from pipeline.model.folded import SCORING_BATCH, fold, image_scores
from pipeline.model.windows import WindowRule, normalise, resized_sides, window_origins
from pipeline.params import Params
from pipeline.study.build import make_backbone, make_model, make_window_rule, prepare_torch
from pipeline.study.pending import Step
from pipeline.study.plans import training_settings
from pipeline.study.sizes import Size
from pipeline.training import statistics
from pipeline.training.baselines import fit_handcrafted, passes
from pipeline.training.crops import EpochCrops, epoch_images
from pipeline.training.fit import optimiser_of, step_of

NETWORK = {"features", "train", "train_random", "evaluate", "audit"}  # stages that need the towers
STARTED = "import torch, open_clip, mlflow, pandas, matplotlib.pyplot"  # what a stage with a network imports
FEW_TREES = 10  # by which the cost of a baseline's trees is judged


@dataclass
class Rates:
    """Seconds on the clock, of this machine as busy as it is now.

    Attributes:
        start: Of a stage that brings in a network, before it computes.
        step: Of training with one image, by variant.
        window: Of scoring one window with a folded model.
        tower: Of one window through the plain tower, for a baseline's features.
        statistics: Of one image's hand-crafted statistics.
        decode: Of one image's decoding.
        draw: Of drawing one image of the demo.
        tree: Of fitting one tree to the training images of the largest data set.
        checkpoint: Bytes of an epoch's checkpoint.
        rule: How images become windows; None where no stage needs the towers.
        device: What computes, in words; empty likewise.
    """

    start: float = 0.0
    step: dict[str, float] = field(default_factory=dict)
    window: float = 0.0
    tower: float = 0.0
    statistics: float = 0.0
    decode: float = 0.0
    draw: float = 0.0
    tree: float = 0.0
    checkpoint: int = 0
    rule: WindowRule | None = None
    device: str = ""

    def windows(self, size: Size, most: int | None = None) -> float:
        """Return windows an image of a data set; 0 where no stage needs the towers."""
        return 0.0 if self.rule is None else size.windows(self.rule, most)


def measure(params: Params, steps: Sequence[Step], sizes: Mapping[str, Size], seconds: float) -> Rates:
    """Return how fast this machine does what some stages ask for, under a progress bar.

    Args:
        params: Of the study.
        steps: Stages that will run.
        sizes: Of the study's data sets.
        seconds: To spend on each kind of work.
    """
    rates, kinds = Rates(), {step.stage for step in steps}
    largest = max(sizes.values(), key=lambda size: size.images)
    side = max(largest.sides, key=lambda sides: largest.sides[sides])
    readers = [params.datasets[name].reader for name in sizes]
    jobs: list[Callable[[], None]] = [lambda: measure_start(rates)]
    if kinds & {"preprocess", "features"}:
        jobs.append(lambda: measure_image(rates, side, largest.sample, seconds / 2))
    if "download" in kinds and "demo" in readers:
        jobs.append(lambda: measure_demo(rates, params.demo.size))
    if "baseline" in kinds and "handcrafted" in params.study.baselines:
        jobs.append(lambda: measure_trees(rates, params, max(20, largest.subsets(params)["train"])))
    bar = tqdm(desc="measuring this machine", unit="part", dynamic_ncols=True, leave=False)
    towers = Towers(params, side) if kinds & NETWORK else None
    if towers is not None:
        rates.rule, rates.device = towers.rule, towers.name
        trained = sorted({step.item[1] for step in steps if step.stage in ("train", "train_random")})
        has_auxiliary = any(reader != "agiqa1k" for reader in readers)
        jobs += [
            lambda variant=variant: towers.measure_step(rates, variant, seconds, has_auxiliary=has_auxiliary)
            for variant in trained
        ]
        if params.study.variants and kinds & NETWORK != {"features"}:
            jobs.append(lambda: towers.measure_window(rates, (trained or params.study.variants)[0], seconds))
        if "features" in kinds and "tower" in passes(params.study.baselines):
            jobs.append(lambda: towers.measure_tower(rates, seconds))
    bar.reset(total=len(jobs))
    with bar:
        for job in jobs:
            job()
            bar.update()
    return rates


def timed(work: Callable[[], int], seconds: float) -> float:
    """Return the seconds of one unit of work, of a repetition for so many seconds at least.

    Args:
        work: Does some of it, and returns how many units; its first call, which warms up, does not count unless it
            takes longer than that by itself.
        seconds: To spend.
    """
    begun = time.perf_counter()
    units = work()
    first = time.perf_counter() - begun
    if first > seconds:
        return first / units
    begun, spent, units = time.perf_counter(), 0.0, 0
    while spent < seconds:
        units += work()
        spent = time.perf_counter() - begun
    return spent / units


def batch_seconds(step: Callable[[int], float], whole: int, seconds: float) -> float:
    """Return the seconds of a step with a whole batch, by steps with ever larger parts of it.

    A step costs something whatever the batch, since prompts and texts run once, and something an image. Where the time
    given does not suffice for a whole batch, it is told from the two largest parts by a straight line.

    Args:
        step: Takes a step with so many images, and returns its seconds.
        whole: Images of a batch.
        seconds: To spend, more or less.
    """
    size = min(4, whole)
    spent = last = step(size)
    while size < whole and spent < seconds:
        before, size = (size, last), min(2 * size, whole)
        last = step(size)
        spent += last
    if size == whole:
        return last
    if size == min(4, whole):  # one step took longer than all that was to be spent
        return last * whole / size
    an_image = max(0.0, last - before[1]) / (size - before[0])
    return last + an_image * (whole - size)


def measure_start(rates: Rates) -> None:
    """Measure what a process takes to start and to import what a stage with a network needs."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", STARTED], check=False, capture_output=True)
    rates.start = time.perf_counter() - begun


def measure_image(rates: Rates, side: tuple[int, int], sample: bytes | None, seconds: float) -> None:
    """Measure what one image costs without a network.

    Args:
        rates: Gets `decode` and `statistics`.
        side: Height and width of the image, where no file is at hand.
        sample: Content of an image file.
        seconds: To spend on each.
    """
    if sample is None:
        buffer = io.BytesIO()
        Image.fromarray(_noise(*side)).save(buffer, "PNG")
        sample = buffer.getvalue()
    pixels, _ = opened(sample)

    def decode() -> int:
        opened(sample)
        return 1

    def describe() -> int:
        statistics.features(pixels)
        return 1

    rates.decode, rates.statistics = timed(decode, seconds), timed(describe, seconds)


def measure_demo(rates: Rates, size: int) -> None:
    """Measure what drawing costs."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        generate(Path(folder) / "demo", prompts=1, size=size, progress=False)
        rates.draw = (time.perf_counter() - begun) / len(GENERATORS)


def measure_trees(rates: Rates, params: Params, images: int) -> None:
    """Measure what the trees of the baseline `handcrafted` cost on so many images, by a few of them."""
    drawn = np.random.default_rng(0)
    train = drawn.standard_normal((images, len(statistics.NAMES))), drawn.uniform(size=images)
    settings = params.baselines.handcrafted

    def grow(trees: int) -> float:
        begun = time.perf_counter()
        fit_handcrafted(
            train, seed=0, learning_rate=settings.learning_rate, max_iterations=trees, max_depth=settings.max_depth
        )
        return time.perf_counter() - begun

    grow(1)  # imports
    rates.tree = grow(FEW_TREES) / FEW_TREES


class Towers:
    """The study's towers and models, made once, whose parts are timed one by one."""

    def __init__(self, params: Params, side: tuple[int, int]) -> None:
        """Load the backbone; `side` is height and width of a usual image."""
        self.params = params
        self.device = prepare_torch(params.train.device, params.train.threads)
        self.backbone: Backbone = make_backbone(params).to(self.device)
        self.rule: WindowRule = make_window_rule(params, self.backbone)
        self.images = [_noise(*side)]
        self._known: dict[str, dict[str, Any]] = {}
        self.name = (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else f"{torch.get_num_threads()} CPU thread" + "s" * (torch.get_num_threads() > 1)
        )

    def measure_step(self, rates: Rates, variant: str, seconds: float, *, has_auxiliary: bool) -> None:
        """Measure training: crops, forward, backward and the optimiser's step.

        Variants that cost the same are measured once.
        """
        switches = self.params.variants[variant].model_dump(exclude={"shuffle_labels"})
        same = next((known for known, found in self._known.items() if found == switches), None)
        if same is not None:
            rates.step[variant] = rates.step[same]
            return
        self._known[variant] = switches
        section, model = self.params.train_for(variant), self._model(variant)
        settings = training_settings(section, self.params.validation.windows, self.device, 0)
        settings = replace(settings, compiled=False)  # which pays a minute at its start
        model.to(self.device)
        optimiser = optimiser_of(model, settings)
        step = step_of(model, settings)

        def train(size: int) -> float:
            begun = time.perf_counter()
            rows = np.zeros(size, dtype=np.int64)
            crops = EpochCrops(self.images, rows, self.rule, flip=True, seed=(0, 0), windows=settings.windows)
            targets = torch.rand(size, device=self.device)
            optimiser.zero_grad(set_to_none=True)
            losses, _ = step(
                epoch_images(crops, None, self.rule, self.device), targets,
                targets if has_auxiliary else torch.full_like(targets, math.nan), labelled=size if has_auxiliary else 0,
            )  # fmt: skip
            optimiser.step()
            losses.cpu()  # waits for a GPU
            return time.perf_counter() - begun

        train(2)  # warms up
        rates.step[variant] = batch_seconds(train, settings.batch_size, 3 * seconds) / settings.batch_size

    def measure_window(self, rates: Rates, variant: str, seconds: float) -> None:
        """Measure scoring one window with a folded model, and the bytes of its checkpoint."""
        model = self._model(variant).to(self.device)
        scorer = fold(model)
        amp = self.params.train.amp == "auto" and self.device.type == "cuda"
        count = _windows(self.rule, self.images[0])
        images = self.images * max(1, SCORING_BATCH[self.device.type] // count)  # passes are as full as in the study

        def score() -> int:
            image_scores(scorer, images, len(images), self.rule, device=self.device, autocast=amp)
            return count * len(images)

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "epoch-000.safetensors"
            save_checkpoint(path, scorer, {"windows": self.rule.record(), "texts": list(self.params.model.texts.main)})
            rates.checkpoint = path.stat().st_size
        rates.window = timed(score, seconds)

    @torch.no_grad()
    def measure_tower(self, rates: Rates, seconds: float) -> None:
        """Measure one window through the plain tower."""
        batch = SCORING_BATCH[self.device.type]
        windows = normalise(np.stack([_noise(self.rule.size, self.rule.size)] * batch), self.rule, self.device)

        def encode() -> int:
            self.backbone.encode_image(windows).cpu()
            return batch

        rates.tower = timed(encode, seconds)

    def _model(self, variant: str) -> DCMPLN:
        return make_model(self.params, variant, self.backbone, 0)


def _windows(rule: WindowRule, pixels: np.ndarray) -> int:
    return len(window_origins(*resized_sides(*pixels.shape[:2], rule), rule))


def _noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
