"""The test images that a reader of a report should see: best predicted, most overrated, most underrated."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from pipeline.files import write_atomically

SIDE = 256  # pixels of a picture's longer side
LOW_COLOUR, HIGH_COLOUR = (213, 94, 0), (0, 114, 178)  # vermillion and blue, which colour-blind readers tell apart
STRONGEST = 0.45  # opacity of the map at either end of its range


def choose(predictions: pd.DataFrame, count: int) -> pd.DataFrame:
    """Pick the images to show.

    Args:
        predictions: Columns of predictions.csv, a row an image.
        count: Images of each kind.

    Returns:
        A row a picked image: image_id, generator, generation_prompt, mos, predicted, `fitted` (the prediction on the
        MOS scale, after the logistic fit on these very images), `score` (what a user is told, where the predictions
        have it), kind and rank (0, 1, ... within its kind). Errors are of `score`, or else of `fitted`. Kind `best`
        holds the smallest error in each of `count` equal parts of the images by MOS, so that it spans the scale; `over`
        and `under` hold the largest errors upwards and downwards. The better half of the images stands under `best`
        alone, the worse half under the other two, so that no image stands under headings that contradict each other.
    """
    table = predictions.sort_values(["mos", "image_id"], kind="stable")
    error = (table["score" if "score" in table else "fitted"] - table["mos"]).to_numpy()
    size = np.abs(error)
    good = size <= np.median(size)
    parts = np.array_split(np.arange(len(table)), min(count, len(table))) if count else []
    best = [int(part[size[part].argmin()]) for part in parts if good[part].any()]
    ordered = [int(place) for place in np.argsort(-error, kind="stable") if not good[place]]
    over = [place for place in ordered if error[place] > 0][:count]
    under = [place for place in reversed(ordered) if error[place] < 0][:count]
    kinds = (("best", best), ("over", over), ("under", under))
    picked = pd.concat([table.iloc[places].assign(kind=kind, rank=range(len(places))) for kind, places in kinds])
    columns = ["image_id", "kind", "rank", "mos", "predicted", "fitted", "score", "generator", "generation_prompt"]
    return picked[[column for column in columns if column in picked]].reset_index(drop=True)


def write_gallery(
    folder: Path,
    predictions: pd.DataFrame,
    count: int,
    pixels_of: Callable[[str], np.ndarray],
    map_of: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Write gallery.csv, a JPEG picture of each picked image, and its quality map as a PNG to lay over it.

    Args:
        folder: Where to.
        predictions: Columns of predictions.csv, a row an image.
        count: Images of each kind; see `choose`.
        pixels_of: Returns an image, shape (H, W, 3), uint8, by its id.
        map_of: Returns the raw scores laid on an image, shape (H', W'), NaN where there is none.
    """
    chosen = choose(predictions, count)
    low, high = np.percentile(predictions["predicted"], [5, 95])  # one range, so that maps can be compared
    names = []
    for row in chosen.itertuples():
        pixels = pixels_of(row.image_id)
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        overlay = Image.fromarray(colours(map_of(pixels), float(low), float(high)))
        stem = f"{row.kind}-{row.rank}"
        files = {
            f"{stem}.jpg": (picture, {"quality": 88}),
            f"{stem}-map.png": (overlay.resize(picture.size, Image.Resampling.NEAREST), {}),
        }
        for name, (image, options) in files.items():
            buffer = io.BytesIO()
            image.save(buffer, "JPEG" if name.endswith("jpg") else "PNG", optimize=True, **options)
            write_atomically(folder / name, buffer.getvalue())
        names.append(list(files))
    chosen[["picture", "map"]] = pd.DataFrame(names, columns=["picture", "map"])
    chosen = chosen.assign(map_low=low, map_high=high)
    write_atomically(folder / "gallery.csv", chosen.to_csv(index=False).encode())


def colours(scores: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return scores as colours to lay over a picture: vermillion at `low`, clear in the middle, blue at `high`.

    Args:
        scores: Shape (H, W); NaN is clear.
        low: Score of the strongest vermillion.
        high: Score of the strongest blue.

    Returns:
        RGBA, shape (H, W, 4), uint8.
    """
    middle, half = (low + high) / 2, max((high - low) / 2, 1e-12)
    place = np.nan_to_num(np.clip((scores - middle) / half, -1, 1))
    tint = np.where(place[..., None] < 0, np.array(LOW_COLOUR), np.array(HIGH_COLOUR))
    opacity = np.round(255 * STRONGEST * np.abs(place))
    return np.concatenate([tint, opacity[..., None]], axis=-1).astype(np.uint8)
