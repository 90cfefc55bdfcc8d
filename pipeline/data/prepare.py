"""From unpacked files to a checked data set: every image decoded once, packed, described, and every problem named."""

import hashlib
import io
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import pandas as pd
from tqdm import tqdm

from pipeline.data.datasets import read_labels
from pipeline.data.decoding import ImageError, opened
from pipeline.data.labels import ATTRIBUTES, IMAGE_SUFFIXES, WHEN_ALLOWED, Labels, Problem
from pipeline.data.places import find_link, is_quality_map, plain_files
from pipeline.errors import AgiqaError
from pipeline.files import write_atomically, write_json
from pipeline.layout import MANIFEST, PIXELS, Raters

SHOWN = 5  # problems of a kind that the error message spells out; the report holds all


class PreparationError(AgiqaError):
    """A data set with problems that params do not allow."""


def prepare(
    dataset: str,
    reader: str,
    raw: Path,
    out: Path,
    allow: Collection[str] = (),
    *,
    labels_file: str | None = None,
    scale: tuple[float, float] | None = None,
    raters: Raters | None = None,
) -> pd.DataFrame:
    """Check a data set and write manifest.parquet, pixels.bin, problems.csv and card.json.

    Args:
        dataset: Its name.
        reader: As `pipeline.data.datasets.read_labels`.
        raw: The unpacked data set.
        out: Folder to write into; emptied by the caller.
        allow: Kinds of problems to go on with; see `pipeline.data.labels.WHEN_ALLOWED`.
        labels_file: As `pipeline.data.datasets.read_labels`.
        scale: Likewise.
        raters: Likewise.

    Returns:
        The manifest, a row an image in the order of pixels.bin: image_id, file, sha256, width, height, pixel_offset,
        generation_prompt, prompt_group, generator, each of quality, alignment and authenticity with its std (NaN where
        none was published), the scale's mos_low and mos_high, and raters: people or simulated.

    Raises:
        PreparationError: If there are problems of a kind not in `allow`; problems.csv is written all the same.
    """
    labels = read_labels(reader, raw, labels_file=labels_file, scale=scale, raters=raters)
    out.mkdir(parents=True, exist_ok=True)
    partial = out / f"{PIXELS}.partial"
    with partial.open("wb") as stream:
        manifest = _decode_all(dataset, labels, raw, stream)
    partial.replace(out / PIXELS)
    problems = pd.DataFrame(sorted(labels.problems), columns=list(Problem._fields))
    problems["consequence"] = [WHEN_ALLOWED[kind] if kind in allow else "stops the stage" for kind in problems["kind"]]
    write_atomically(out / "problems.csv", problems.to_csv(index=False).encode())
    _stop_on(dataset, problems[~problems["kind"].isin(list(allow))], out / "problems.csv")
    if manifest.empty:
        raise PreparationError(f"data set {dataset!r} has no usable image left; see {out / 'problems.csv'}")
    buffer = io.BytesIO()
    manifest.to_parquet(buffer, index=False)
    write_atomically(out / MANIFEST, buffer.getvalue())
    write_json(out / "card.json", card(dataset, labels, manifest))
    return manifest


def check(
    reader: str, folder: Path, *, labels_file: str | None = None, scale: tuple[float, float] | None = None
) -> tuple[Labels, pd.DataFrame]:
    """Return what `prepare` would say of a data set, without writing anything.

    Args:
        reader: As `pipeline.data.datasets.read_labels`.
        folder: The unpacked data set.
        labels_file: As `pipeline.data.datasets.read_labels`.
        scale: Likewise.

    Raises:
        PreparationError: If the folder holds a link: the study copies a data set, and a link leads out of the copy.

    Returns:
        The labels, with every problem found in them and in the images, and the manifest of the images that are left.
    """
    if folder.is_dir() and (link := find_link(folder)) is not None:
        raise PreparationError(f"{link} is a link: put the file itself there")
    labels = read_labels(reader, folder, labels_file=labels_file, scale=scale)
    return labels, _decode_all(folder.name, labels, folder, None)


def _decode_all(dataset: str, labels: Labels, raw: Path, stream: IO[bytes] | None) -> pd.DataFrame:
    """Decode every image, write its pixels to `stream` if there is one, and add what is wrong to the problems."""
    found: list[dict[str, Any]] = []
    kept: list[int] = []
    profiles: Counter[str] = Counter()
    offset = 0
    with tqdm(labels.rows["file"], desc=f"{dataset}: decoding images", unit="image", dynamic_ncols=True) as bar:
        for number, file in enumerate(bar):
            path = raw / file
            if not path.is_file():
                labels.problems.append(
                    Problem("missing", str(labels.rows["image_id"][number]), f"{file} does not exist")
                )
                continue
            content = path.read_bytes()
            try:
                pixels, profile = opened(content)
            except ImageError as error:
                labels.problems.append(
                    Problem("unreadable", str(labels.rows["image_id"][number]), f"{file} {error.reason}")
                )
                continue
            if profile is not None:
                profiles[profile] += 1
            if stream is not None:
                stream.write(pixels.data)
            height, width = pixels.shape[:2]
            digest = hashlib.sha256(content).hexdigest()
            found.append({"sha256": digest, "width": width, "height": height, "pixel_offset": offset})
            kept.append(number)
            offset += height * width * 3
    if profiles:
        names = ", ".join(f"{count} {name}" for name, count in sorted(profiles.items()))
        labels.notes.append(f"converted to sRGB, relative colorimetric, from the profiles that they embed: {names}")
    columns = ["sha256", "width", "height", "pixel_offset"]
    rows = labels.rows.iloc[kept].reset_index(drop=True)
    manifest = pd.concat([rows, pd.DataFrame(found, columns=columns)], axis=1)
    for _, group in manifest.groupby("sha256"):
        if len(group) > 1:
            names = list(group["image_id"])
            prompts = group["prompt_group"].nunique()
            for name in names:
                others = ", ".join(other for other in names if other != name)
                what = f"same bytes as {others}" + (", under another generation prompt" if prompts > 1 else "")
                labels.problems.append(Problem("duplicate_image", str(name), what))
    for attribute in ATTRIBUTES:
        values = manifest[attribute].dropna()
        if len(values) > 1 and values.nunique() == 1:
            what = f"{values.iloc[0]:g} for all {len(values)} images: a correlation needs different scores"
            labels.problems.append(Problem("no_spread", attribute, what))
    known = set(labels.rows["file"]) | {problem.image for problem in labels.problems}
    for path in plain_files(raw):
        name = path.relative_to(raw).as_posix()
        if path.suffix.lower() not in IMAGE_SUFFIXES or is_quality_map(path):
            continue
        if name not in known and path.name not in known:
            labels.problems.append(Problem("unlabelled", name, "no label names this file"))
    return manifest[["image_id", "file", *columns, *(c for c in manifest if c not in ("image_id", "file", *columns))]]


def _stop_on(dataset: str, problems: pd.DataFrame, report: Path) -> None:
    if problems.empty:
        return
    lines = []
    for kind, group in problems.groupby("kind"):
        lines.append(f"  {kind}: {len(group)}; if allowed, {WHEN_ALLOWED[str(kind)]}")
        lines += [f"    {row.image}: {row.detail}" for row in group.head(SHOWN).itertuples()]
        if len(group) > SHOWN:
            lines.append(f"    ... and {len(group) - SHOWN} more")
    kinds = ", ".join(sorted(set(problems["kind"])))
    raise PreparationError(
        f"data set {dataset!r} has {len(problems)} problems, all listed in {report}:\n" + "\n".join(lines) + "\n"
        f"Mend the data, or go on knowingly with datasets.{dataset}.allow_problems: [{kinds}] in params.yaml."
    )


def card(dataset: str, labels: Labels, manifest: pd.DataFrame) -> dict[str, Any]:
    """Return the data card: what a reader must know of a data set before trusting a number."""
    scores = {}
    for attribute in ATTRIBUTES:
        values = manifest[attribute].dropna()
        if len(values):
            scores[attribute] = {
                "images": len(values),
                "lowest": float(values.min()),
                "mean": float(values.mean()),
                "highest": float(values.max()),
                "std_published": bool(manifest[f"{attribute}_std"].notna().any()),
            }
    sizes = Counter(f"{width}x{height}" for width, height in zip(manifest["width"], manifest["height"], strict=True))
    return {
        "dataset": dataset,
        "licence": labels.licence,
        "raters": labels.raters,
        "images": len(manifest),
        "generation_prompts": int(manifest["generation_prompt"].nunique()),
        "prompt_groups": int(manifest["prompt_group"].nunique()),
        "generators": {
            str(name): int(count) for name, count in manifest["generator"].value_counts().sort_index().items()
        },
        "sizes": dict(sizes.most_common()),
        "mos_low": float(manifest["mos_low"].iloc[0]),
        "mos_high": float(manifest["mos_high"].iloc[0]),
        "scores": scores,
        "problems": dict(sorted(Counter(problem.kind for problem in labels.problems).items())),
        "notes": labels.notes,
    }
