"""Score images of your own with a trained checkpoint: the door of the library for everyone who trains nothing.

    from pipeline import load_scorer

    scorer = load_scorer("epoch-012.safetensors", backbone_file="ViT-B-32.pt")
    scores = scorer.score(["one.png", "two.jpg"], quality_maps=True)

A checkpoint says by itself which towers, windows and texts it needs and what its scores mean, so that nothing else of
what trained it must be at hand but the towers' weights. Every method of the study scores, a baseline like a variant.

What a method does without is not imported for it: torch and the towers for one that reads statistics of an image, the
statistics for one with towers, MLflow's rooms for a file.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple, Union

import numpy as np
from PIL import Image

from pipeline.calibration import Calibration, told_mos
from pipeline.data.decoding import MOST_PIXELS, ImageError, open_image
from pipeline.errors import AgiqaError
from pipeline.familiarity import Familiarity
from pipeline.files import expanded, file_sha256
from pipeline.layout import HOME, INSTALLED, LEVEL, PERCENTS, repository_root
from pipeline.model.checkpoint_file import CheckpointError, calibration_of, familiarity_of, read_checkpoint, trees_of
from pipeline.model.windows import WindowRule, resize, resized_sides, window_origins
from pipeline.study.champion import find_auto, is_auto

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.model.folded import FoldedScorer

__all__ = ["ImageError", "Scorer", "Scores", "ScoringError", "find_checkpoint", "load_scorer", "open_image"]

Source = Union[str, Path, bytes, IO[bytes], Image.Image, np.ndarray, "Tensor"]


class ScoringError(AgiqaError):
    """A device or an argument that cannot be had."""


@dataclass(frozen=True)
class Scores:
    """What `Scorer.score` returns, an entry an image, in the order of the images.

    Attributes:
        raw: Higher is better, shape (n,), float64; in (0, 1) of methods that compare with texts.
        mos: The MOS that it stands for, on the scale of the data set that the model was trained on, shape (n,),
            float64. Of a checkpoint without calibration the raw score stretched over the scale: a rank, and no more.
        low, high: Ends of the band that holds the MOS of so many in a hundred new images as `level` says, each (n,);
            None without calibration.
        unfamiliar: Whether each image is unlike those that the model was trained on, so that nobody vouches for score
            and band, shape (n,), bool; None where the checkpoint does not know.
        maps: Raw scores laid over each image, each (H, W), float32, NaN where no window reaches; None unless asked for.
    """

    raw: np.ndarray
    mos: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None
    unfamiliar: np.ndarray | None
    maps: list[np.ndarray] | None


class Seen(NamedTuple):
    """What a scorer finds in one image.

    Attributes:
        raw: The raw score.
        unfamiliar: See `Scores`; None where the checkpoint does not know.
        drawn: The quality map, if one was asked for.
    """

    raw: float
    unfamiliar: bool | None
    drawn: np.ndarray | None


class Fitted(NamedTuple):
    """An image at the size at which it is cut into windows.

    Attributes:
        pixels: Shape (H, W, 3), uint8.
        height, width: Of the image as it was opened.
        windows: How many are cut from it.
    """

    pixels: np.ndarray
    height: int
    width: int
    windows: int


class Pass:
    """Images that share a forward pass: as many as have no more than `most` windows together, or a single larger one.

    Who shares a pass with whom depends on the images' sizes and order alone.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._images: list[Fitted] = []
        self.windows = 0

    def has_room(self, fitted: Fitted) -> bool:
        """Return whether an image may join."""
        return not self._images or self.windows + fitted.windows <= self.most

    def add(self, fitted: Fitted) -> None:
        """Take an image in."""
        self._images.append(fitted)
        self.windows += fitted.windows

    @property
    def is_full(self) -> bool:
        """Whether no image can join any more."""
        return self.windows >= self.most

    def take(self) -> list[Fitted]:
        """Return the images, and leave the pass empty."""
        taken, self._images, self.windows = self._images, [], 0
        return taken


@dataclass(frozen=True)
class Scorer:
    """A trained model that scores images of any size. It never changes, so threads may share it.

    Attributes:
        record: The checkpoint's record: data set, method, target, texts, backbone, scale, windows.
        rule: How an image is cut into windows; None for a method that takes it as a whole.
        folded: Scores windows; None likewise.
        path: The checkpoint.
        sha256: Of the checkpoint file.
        device: Where it runs.
        autocast: Whether the tower runs in bfloat16.
        calibration: From raw score to MOS; None where the checkpoint has none.
        familiarity: How the training images lie; likewise.
        level: Of the bands, in percent.
        trees: Of a method that reads statistics of the image, by the names of `checkpoint_file.TREES`; else None.
    """

    record: dict[str, Any]
    rule: WindowRule | None
    folded: "FoldedScorer | None"
    path: Path
    sha256: str
    device: Literal["cpu", "cuda"]
    autocast: bool = False
    calibration: Calibration | None = None
    familiarity: Familiarity | None = None
    level: int = LEVEL
    trees: Mapping[str, np.ndarray] | None = None

    @property
    def mos_low(self) -> float:
        """Lowest possible MOS of the data set that the model was trained on."""
        return float(self.record["mos_low"])

    @property
    def mos_high(self) -> float:
        """Highest possible MOS of that data set."""
        return float(self.record["mos_high"])

    @property
    def draws_maps(self) -> bool:
        """Whether the method judges windows by themselves, and so can tell where an image is good or bad."""
        return self.folded is not None and self.folded.deviation_weights is None

    def to_mos(self, raw: np.ndarray) -> np.ndarray:
        """Return the MOS that raw scores stand for; without calibration, raw scores stretched over the scale."""
        return told_mos(raw, self.calibration, self.mos_low, self.mos_high)

    def band(self, mos: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return the ends of the band around scores on the MOS scale; None twice without calibration."""
        return (None, None) if self.calibration is None else self.calibration.band(mos, self.level)

    def open(self, source: Source, *, max_bytes: int | None = None, max_pixels: int | None = MOST_PIXELS) -> np.ndarray:
        """Return an image as `open_image` does, unless it is too long and narrow to be resized for its windows.

        Args:
            source: As `open_image`.
            max_bytes: Likewise.
            max_pixels: Likewise; it holds for the resized image, too.

        Raises:
            ImageError: Likewise.
        """
        pixels = open_image(source, max_bytes=max_bytes, max_pixels=max_pixels)
        if self.rule is None:
            return pixels
        height, width = pixels.shape[:2]
        tall, wide = resized_sides(height, width, self.rule)
        if max_pixels is not None and tall * wide > max_pixels:
            name = str(source) if isinstance(source, str | Path) else None
            raise ImageError(
                f"has {width:,} x {height:,} pixels, and {wide:,} x {tall:,} once its short side is enlarged to the "
                f"{min(tall, wide)} of {'a window' if self.rule.shorter_side is None else 'the training'}: "
                f"{max_pixels:,} are allowed in all",
                name,
            )
        return pixels

    def score(
        self, images: Source | Iterable[Source], *, quality_maps: bool = False, batch: int | None = None
    ) -> Scores:
        """Score images.

        Args:
            images: One image or many, each as `open_image` takes it: a path, an image file's bytes or stream, a PIL
                image, an array (H, W, 3), or a tensor (3, H, W). Many are read one after the other, so that a
                generator of any length takes no more memory than one forward pass.
            quality_maps: Return the window scores laid over each image as well.
            batch: Windows a forward pass; None takes what suits the device.

        Raises:
            ImageError: If an image cannot be used; names it, or its place among the images.
            ScoringError: As `stream`.
        """
        single = isinstance(images, str | Path | bytes | Image.Image) or hasattr(images, "read")
        single = single or getattr(images, "ndim", None) in (2, 3)  # an array or a tensor
        found = list(self.stream(self._opened([images] if single else images), quality_maps=quality_maps, batch=batch))
        raw = np.array([one.raw for one in found], dtype=np.float64)
        mos = self.to_mos(raw)
        low, high = self.band(mos)
        known = self.familiarity is not None
        unfamiliar = np.array([one.unfamiliar for one in found], dtype=bool) if known else None
        return Scores(raw, mos, low, high, unfamiliar, [one.drawn for one in found] if quality_maps else None)

    def _opened(self, images: Iterable[Source]) -> Iterator[np.ndarray]:
        for number, image in enumerate(images):
            try:
                yield self.open(image)
            except ImageError as error:
                name = str(image) if isinstance(image, str | Path) else f"image {number} (from 0)"
                raise ImageError(error.reason, name) from None

    def stream(
        self,
        images: Iterable[np.ndarray],
        *,
        quality_maps: bool = False,
        map_side: int | None = None,
        batch: int | None = None,
    ) -> Iterator[Seen]:
        """Yield what is found in each image, as soon as it is known.

        Images are taken from the iterable as they are needed: those of one forward pass are held at a time.

        Args:
            images: Each (H, W, 3), uint8, from `open`.
            quality_maps: As `score`.
            map_side: Longest side of a map: of a larger image it holds every n-th row and column, with the least n that
                suffices. None: every pixel.
            batch: Windows a forward pass; None takes what suits the device.

        Raises:
            ScoringError: If the memory does not suffice for so many windows, or quality maps are asked of a method that
                takes an image as a whole.
        """
        self._check_maps(quality_maps)
        images, waiting = iter(images), self.new_pass(batch)
        while True:
            fitted = next((self.fit(pixels) for pixels in images), None)
            if fitted is None or not waiting.has_room(fitted):
                yield from self.see(waiting, quality_maps=quality_maps, map_side=map_side)
            if fitted is None:
                return
            waiting.add(fitted)
            del fitted  # so that a huge image is gone before the next one is opened
            if waiting.is_full:
                yield from self.see(waiting, quality_maps=quality_maps, map_side=map_side)

    def fit(self, pixels: np.ndarray) -> Fitted:
        """Return an image, (H, W, 3), uint8, from `open`, at the size at which it is cut into windows."""
        height, width = pixels.shape[:2]
        if self.rule is None:
            return Fitted(pixels, height, width, 1)
        fitting = resize(pixels, self.rule)
        return Fitted(fitting, height, width, len(window_origins(*fitting.shape[:2], self.rule)))

    def new_pass(self, batch: int | None = None) -> Pass:
        """Return an empty forward pass for at most so many windows; None takes what suits the device."""
        if self.folded is None:
            return Pass(1)
        from pipeline.model.folded import SCORING_BATCH

        return Pass(batch or SCORING_BATCH[self.device])

    def see(self, images: Pass, *, quality_maps: bool = False, map_side: int | None = None) -> deque[Seen]:
        """Return what is found in the images of a forward pass, in their order, and empty the pass.

        Args:
            images: Of one pass.
            quality_maps: As `stream`.
            map_side: Likewise.

        Raises:
            ScoringError: As `stream`.
        """
        self._check_maps(quality_maps)
        group = images.take()
        if self.folded is None:
            return deque(self._whole(fitted.pixels) for fitted in group)
        from pipeline.model.folded import window_scores

        try:
            found = window_scores(
                self.folded,
                [fitted.pixels for fitted in group],
                self.rule,
                device=self.device,
                batch=images.most,
                autocast=self.autocast,
            )
        except (MemoryError, RuntimeError) as error:
            if not _lacks_memory(error):
                raise
            raise ScoringError(
                f"the memory of the {self.device} does not suffice for {images.most} windows a forward pass: ask "
                "for a smaller batch"
            ) from error
        return deque(
            Seen(
                one.raw,
                self._is_unfamiliar(one.features),
                self._map(one.windows, fitted, map_side) if quality_maps else None,
            )
            for one, fitted in zip(found, group, strict=True)
        )

    def _check_maps(self, quality_maps: bool) -> None:
        if quality_maps and not self.draws_maps:
            raise ScoringError(
                f"{self.record['method']} judges an image as a whole, so it has no quality map: choose a variant, "
                f"such as auto:{self.record['dataset']}:dcmpln"
            )

    def _whole(self, pixels: np.ndarray) -> Seen:
        from pipeline.training import statistics
        from pipeline.training.baselines import tree_scores

        features = statistics.features(pixels)[None]
        return Seen(float(tree_scores(self.trees, features)[0]), self._is_unfamiliar(features[0]), None)

    def _is_unfamiliar(self, features: np.ndarray) -> bool | None:
        return None if self.familiarity is None else bool(self.familiarity.is_unfamiliar(features[None])[0])

    def _map(self, scores: np.ndarray, fitted: Fitted, side: int | None) -> np.ndarray:
        from pipeline.model.folded import lay_out

        height, width = fitted.height, fitted.width
        step = 1 if side is None else max(1, -(-max(height, width) // side))
        tall, wide = fitted.pixels.shape[:2]
        if (tall, wide) == (height, width):
            return lay_out(scores, height, width, self.rule, step)
        drawn = Image.fromarray(lay_out(scores, tall, wide, self.rule))
        return np.asarray(drawn.resize((width, height), Image.Resampling.BOX))[::step, ::step]


def load_scorer(
    checkpoint: str | Path = "auto",
    *,
    device: str = "auto",
    backbone_file: str | Path | None = None,
    root: str | Path | None = None,
    bfloat16: bool = False,
    int8: bool = False,
    level: int = LEVEL,
) -> Scorer:
    """Load a scorer.

    Args:
        checkpoint: A checkpoint file; a model on the Hugging Face Hub (`hf:owner/name`, or with `@` and a branch, tag
            or commit); an MLflow URI (`models:/...` or `runs:/...`); `auto` for the champion among the runs under
            `root`, or else the model that comes with the repository; `auto:<data set>` where they are of several data
            sets, or `auto:<data set>:<method>` for the best of one method.
        device: `auto` (a GPU where there is one), `cpu` or `cuda`.
        backbone_file: The towers' weights, where they lie elsewhere than the checkpoint says; None takes those that lie
            beside a checkpoint from the Hub.
        root: Of a repository, with `runs/` and MLflow's store; None takes the working folder, or the clone that
            this code lies in, if it lies in one and the working folder has neither.
        bfloat16: Run the image tower in bfloat16: faster on GPUs, and scores drift in the third decimal.
        int8: Run the image tower in int8: faster on CPUs with int8 units, and scores drift in the third decimal; they
            depend a little on what is scored in the same forward pass, too.
        level: Of the bands, in whole percent: see `Scores`.

    Raises:
        ChampionError: If `auto` finds no champion.
        CheckpointError: If the checkpoint is missing, damaged or of another kind.
        HubError: If a model on the Hub cannot be had, or is not what it says.
        BackboneError: If the towers' weights are missing, or others than the checkpoint was trained with.
        ScoringError: If the level is none of `layout.PERCENTS`, the device is unknown or not there, an MLflow URI leads
            to no checkpoint, or int8 is asked for on a GPU or beside bfloat16.
    """
    if level not in PERCENTS:
        raise ScoringError(f"level is {level!r}: whole percents from {PERCENTS[0]} to {PERCENTS[-1]} are known")
    base = _root(root)
    path = find_checkpoint(checkpoint, base)
    record, arrays = read_checkpoint(path)
    if record.get("metric") is not None:
        raise ScoringError(
            f"{path} is the metric {record['metric']['name']} of {record['metric']['package']}, which a study compares "
            "with and which is no model of its own: score with that package"
        )
    # Statistics are computed on any CPU, so there torch need not say whether it sees a GPU.
    chosen = _device("cpu" if record["backbone"] is None and device == "auto" else device)
    if int8 and (bfloat16 or chosen != "cpu"):
        raise ScoringError(f"int8 is for CPUs and goes without bfloat16; the device is {chosen}, bfloat16 {bfloat16}")
    sha256 = file_sha256(path)
    if record["backbone"] is None:
        return _of_statistics(path, record, arrays, sha256, level)

    from pipeline.model.checkpoint import load_checkpoint
    from pipeline.model.folded import quantise
    from pipeline.model.hub import weights_beside
    from pipeline.model.loading import rebuild_backbone

    folders = list(dict.fromkeys([base, HOME, path.resolve().parent]))
    given = weights_beside(path) if backbone_file is None else backbone_file
    backbone = rebuild_backbone(record["backbone"], file=given, folders=folders).to(chosen)
    folded, rule, record = load_checkpoint(path, backbone)
    folded = quantise(folded) if int8 else folded
    backbone.fast_tower()  # made now, so that no thread finds it half made
    familiarity = familiarity_of(path, record, arrays, backbone.embed_dim)
    return Scorer(record, rule, folded, path, sha256, chosen, bfloat16, calibration_of(record), familiarity, level)


def _of_statistics(
    path: Path, record: dict[str, Any], arrays: Mapping[str, np.ndarray], sha256: str, level: int
) -> Scorer:
    """Return the scorer of a checkpoint that reads statistics of the image, for which any CPU will do."""
    from pipeline.training import statistics

    if record["statistics"] != list(statistics.NAMES):
        raise CheckpointError(f"{path} does not fit: it reads other statistics of an image than this version computes")
    width = len(statistics.NAMES)
    trees, familiarity = trees_of(path, arrays, width), familiarity_of(path, record, arrays, width)
    return Scorer(record, None, None, path, sha256, "cpu", False, calibration_of(record), familiarity, level, trees)


def find_checkpoint(checkpoint: str | Path, root: str | Path | None = None) -> Path:
    """Return the file that `load_scorer` would load; arguments and errors as there."""
    text, base = str(checkpoint), _root(root)
    if is_auto(text):
        return find_auto(text, base)
    if text.startswith("hf:"):
        from pipeline.model.hub import fetch

        return fetch(text)
    if text.startswith(("models:/", "runs:/")):
        from pipeline.tracking.models import fetch_checkpoint

        try:
            return fetch_checkpoint(text, base)
        except AgiqaError as error:
            raise ScoringError(str(error)) from error
    return expanded(checkpoint)


def _root(root: str | Path | None) -> Path:
    if root is not None:
        return Path(root).resolve()
    here = repository_root()
    return here if INSTALLED or (here / "runs").is_dir() or (here / "mlflow.db").is_file() else HOME


def _lacks_memory(error: Exception) -> bool:
    """Return whether memory ran out, which torch's allocator of the CPU tells in its words alone."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _device(device: str) -> Literal["cpu", "cuda"]:
    if device not in ("auto", "cpu", "cuda"):
        raise ScoringError(f"device is {device!r}: auto, cpu and cuda are known")
    if device == "cpu":
        return "cpu"
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ScoringError("device is 'cuda', and torch sees no GPU here: use 'auto' or 'cpu'")
    return "cuda" if torch.cuda.is_available() else "cpu"
