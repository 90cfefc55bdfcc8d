"""The data card: what a prepared data set looks like, as one figure."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipeline.drawing import COLOURS, GREY, house_style, put_title, save
from pipeline.layout import rated_by


def data_card(manifest: pd.DataFrame, images: Sequence[np.ndarray], path: str | Path, dataset: str) -> None:
    """Draw what a data set looks like: its score histograms, images per generator, and samples from low to high MOS.

    Args:
        manifest: Columns generator, quality, alignment, authenticity, mos_low, mos_high, raters; a row an image.
        images: Decoded images in the manifest's order, each (H, W, 3), uint8.
        path: File to write; its suffix (.png or .svg) says the format.
        dataset: Its name.
    """
    scores = [name for name in ("quality", "alignment", "authenticity") if manifest[name].notna().any()]
    makers = manifest["generator"].value_counts().sort_index()
    low, high = float(manifest["mos_low"].iloc[0]), float(manifest["mos_high"].iloc[0])
    across, shown = 8, list(makers.index)[:12]
    with house_style():
        figure = Figure(figsize=(10.5, 2.9 + 1.15 * len(shown)), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=[2.4, 1.15 * len(shown)])
        panels = np.atleast_1d(top.subplots(1, len(scores) + 1))
        for axes, name, colour in zip(panels, scores, COLOURS, strict=False):
            axes.hist(manifest[name].dropna(), bins=np.linspace(low, high, 26), color=colour)
            axes.set(title=f"{name} MOS", xlabel=f"{low:g} to {high:g}", ylabel="images")
        counts = panels[-1]
        counts.barh([str(name) for name in makers.index], makers.to_numpy(), color=GREY)
        counts.bar_label(counts.containers[0], padding=2, fontsize=7)
        counts.margins(x=0.18)
        counts.invert_yaxis()
        counts.set(title="images per generator")
        counts.grid(axis="y", visible=False)
        grid = bottom.subplots(len(shown), across, squeeze=False)
        for row, maker in zip(grid, shown, strict=True):
            ranked = manifest.index[manifest["generator"] == maker].to_numpy()
            ranked = ranked[np.argsort(manifest["quality"].to_numpy()[ranked], kind="stable")]
            for axes in row:
                axes.axis("off")
            picks = np.unique(np.linspace(0, len(ranked) - 1, min(across, len(ranked))).round().astype(int))
            for axes, index in zip(row, ranked[picks], strict=False):
                step = max(1, min(images[index].shape[:2]) // 128)
                axes.imshow(images[index][::step, ::step], interpolation="none")
                axes.set_title(f"{manifest['quality'][index]:.2f}", loc="center", fontsize=7, pad=2)
            row[0].text(-0.06, 0.5, maker, transform=row[0].transAxes, rotation=90, ha="right", va="center", fontsize=8)
        beyond = f", the first {len(shown)} of {len(makers)} generators" if len(makers) > len(shown) else ""
        who = rated_by(manifest.iloc[0])
        shown_as = f"samples from lowest to highest quality MOS{beyond}"
        put_title(figure, f"{dataset}: {len(manifest):,} images, rated by {who}\n{shown_as}")
        save(figure, path)
