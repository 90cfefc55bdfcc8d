"""Each data set's quirks end here: published label files in, one table of labelled images out.

A reader never decodes an image and never drops a row in silence: what is odd comes back as a problem or a note. The
reader `folder` takes a data set of anyone's own: images and one CSV.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.data.labels import ATTRIBUTES, COLUMNS, DatasetError, Labels, Problem
from pipeline.data.own import read_folder
from pipeline.data.readers import READERS
from pipeline.layout import Raters


def read_labels(
    reader: str,
    folder: str | Path,
    *,
    labels_file: str | None = None,
    scale: tuple[float, float] | None = None,
    raters: Raters | None = None,
) -> Labels:
    """Read a data set's labels.

    Args:
        reader: demo, agiqa3k, agiqa1k, aigciqa2023 or folder.
        folder: The unpacked data set; its label file may lie at any depth.
        labels_file: For the reader `folder`: its CSV, relative to `folder`; None takes the only one.
        scale: For the reader `folder`: lowest and highest possible MOS; None reads the columns mos_low and mos_high.
        raters: For the reader `folder`: who gave the scores; None takes people. Every other reader knows it.

    Returns:
        One row per labelled image whose name is unambiguous, sorted by image id, and what was odd.

    Raises:
        DatasetError: If a label file is missing, ambiguous, or lacks a column.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(f"{folder} does not exist: run the download stage first")
    labels = read_folder(folder, labels_file, scale) if reader == "folder" else READERS[reader](folder)
    labels.raters = raters or labels.raters
    rows = labels.rows.reset_index(drop=True).assign(raters=labels.raters)
    for attribute in ATTRIBUTES:
        for column in (attribute, f"{attribute}_std"):
            rows[column] = rows[column].astype(np.float64) if column in rows else np.nan
    if "prompt_group" not in rows:
        rows["prompt_group"] = rows["generation_prompt"]
    rows = _without_repeats(_without_bad_labels(rows, labels.problems), labels.problems)
    labels.rows = rows.sort_values("image_id", kind="stable").reset_index(drop=True)[COLUMNS]
    return labels


def _without_bad_labels(rows: pd.DataFrame, problems: list[Problem]) -> pd.DataFrame:
    bad = pd.Series(False, index=rows.index)
    for attribute in ATTRIBUTES:
        values = rows[attribute]
        if attribute != "quality" and values.isna().all():
            continue  # the data set has no such score at all
        outside = values.isna() | (values < rows["mos_low"]) | (values > rows["mos_high"])
        for row in rows[outside].itertuples():
            low, high = row.mos_low, row.mos_high
            problems.append(
                Problem(
                    "bad_label", row.image_id, f"{attribute} is {getattr(row, attribute)}, not in {low:g}..{high:g}"
                )
            )
        bad |= outside
    return rows[~bad]


def _without_repeats(rows: pd.DataFrame, problems: list[Problem]) -> pd.DataFrame:
    repeated = rows["image_id"].duplicated(keep=False)
    for name, group in rows[repeated].groupby("image_id"):
        scores = " and ".join(f"{value:.3f}" for value in group["quality"])
        problems.append(Problem("duplicate_name", str(name), f"stands {len(group)} times, with quality {scores}"))
    return rows[~repeated]
