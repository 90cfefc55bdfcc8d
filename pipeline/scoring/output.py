"""How scores look: a table with bars on a terminal, CSV or JSON on a pipe, and files of three kinds."""

import csv
import io
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from pipeline.data.decoding import printable
from pipeline.errors import AgiqaError
from pipeline.files import write_atomically
from pipeline.layout import backbone_label, rated_by
from pipeline.scoring.journal import Row

if TYPE_CHECKING:
    from pipeline.scoring.compare import Comparison
    from pipeline.scoring.ranking import Ranked
    from pipeline.scoring.scorer import Scorer

SUFFIXES = (".csv", ".json", ".parquet")
BAR = 24  # characters of a full bar


class OutputError(AgiqaError):
    """An output that must not, or cannot, be written."""


def check_target(out: Path | str, inputs: Sequence[str]) -> None:
    """Refuse an output of an unknown kind, or one that is also an input, before any work is done.

    Raises:
        OutputError: Says what would be right.
        ImportError: If a package that writes Parquet is missing.
    """
    if isinstance(out, str):
        raise OutputError(f"--out is {out}, an address: only --engine ray writes to one; name a file")
    if out.suffix.lower() not in SUFFIXES:
        raise OutputError(f"--out is {out}: its name must end in {', '.join(SUFFIXES)}, which says the kind of file")
    if any(Path(path).resolve() == out.resolve() for path in inputs):
        raise OutputError(f"--out is {out}, which is also an input: it would be overwritten")
    if out.is_dir():
        raise OutputError(f"--out is {out}, which is a folder: name a file")
    if out.suffix.lower() == ".parquet":
        import pandas  # noqa: F401 (these two come with an extra, and are missed before anything is scored)
        import pyarrow  # noqa: F401


def describe(scorer: "Scorer") -> str:
    """Return in one line which model scores, on whose scale, and whether anything leaked into it."""
    record = scorer.record
    leaks = f"; LEAKS: {', '.join(record['leaks'])}" if record.get("leaks") else ""
    sees = "statistics of the image" if record["backbone"] is None else f"backbone {backbone_label(record['backbone'])}"
    worth = (
        f"bands hold {scorer.level} % of images like those" if scorer.calibration is not None
        else "NOT CALIBRATED: the raw score stretched over the scale, good for ranking alone"
    )  # fmt: skip
    return (
        f"{record['method']} trained on {record['dataset']}: {record['target']}, MOS {scorer.mos_low:g} to "
        f"{scorer.mos_high:g} by {rated_by(record)}; {sees}; {worth}{leaks}"
    )


def warning(scorer: "Scorer") -> str | None:
    """Return what somebody must know who scores images of their own with this model; None if nothing."""
    if scorer.record.get("raters", "people") == "people":
        return None
    return (
        f"warning: {scorer.record['dataset']} was scored by simulated raters, so these scores are an exercise, and say "
        "nothing of what people think of your images"
    )


def about(scorer: "Scorer") -> dict[str, Any]:
    """Return what a JSON document says of the model."""
    record = scorer.record
    return {
        "file": scorer.path.name,
        "sha256": scorer.sha256,
        "method": record["method"],
        "dataset": record["dataset"],
        "target": record["target"],
        "scale": [scorer.mos_low, scorer.mos_high],
        "raters": record.get("raters", "people"),
        "backbone": None if record["backbone"] is None else backbone_label(record["backbone"]),
        "calibrated": scorer.calibration is not None,
        "level": None if scorer.calibration is None else scorer.level,
        "leaks": record.get("leaks", []),
    }


def as_record(row: Row, scorer: "Scorer", *, with_maps: bool) -> dict[str, Any]:
    """Return a row as it is written: every score beside its scale, every path as text that any file takes."""
    record = {
        "image": printable(row.image),
        "score": row.score,
        "low": row.low,
        "high": row.high,
        "level": None if row.low is None else scorer.level,
        "unfamiliar": row.unfamiliar,
        "raw": row.raw,
        "scale_low": scorer.mos_low,
        "scale_high": scorer.mos_high,
        "width": row.width,
        "height": row.height,
        "error": row.error,
    }
    if with_maps:
        record["quality_map"] = None if row.quality_map is None else printable(row.quality_map)
    return record


def write_scores(
    rows: Iterable[Row], scorer: "Scorer", *, out: Path | None, form: str | None, with_maps: bool = False
) -> list[Row]:
    """Write scores as they come, to standard output or to a file, and return them.

    Args:
        rows: One an image.
        scorer: That made them.
        out: File to write; None takes standard output.
        form: table, csv or json on standard output; None takes a table on a terminal, else CSV.
        with_maps: Name the pictures of quality maps.
    """
    form = _form(form)
    kept: list[Row] = []
    if out is None and form == "csv":
        writer = None
        for row in rows:
            record = as_record(row, scorer, with_maps=with_maps)
            if writer is None:
                writer = csv.DictWriter(sys.stdout, list(record), lineterminator="\n")
                writer.writeheader()
            writer.writerow(record)
            kept.append(row)
    elif out is None and form == "table":
        _line(describe(scorer))
        _line(f"{'score':>6}  {_band_title(scorer):<13} {_scale(scorer)}  image")
        for row in rows:
            _line(_table_line(row, scorer))
            kept.append(row)
    else:
        kept = list(rows)
        _write([as_record(row, scorer, with_maps=with_maps) for row in kept], scorer, out)
    sys.stdout.flush()
    return kept


def write_ranks(ranked: "Sequence[Ranked]", scorer: "Scorer", *, out: Path | None, form: str | None) -> None:
    """Write ranked images; arguments as `write_scores`."""
    form = _form(form)
    if out is None and form == "table":
        _line(describe(scorer))
        if any(entry.tie for entry in ranked):
            within = "equal" if scorer.calibration is None else "within the band of the first of them"
            _line(f"= shares its place: the scores are {within}; still best first")
        group = None
        for entry in ranked:
            if entry.group != group:
                group = entry.group
                _line(f"\n{_shown(group)}")
            _line(f"{'=' * entry.tie + str(entry.place):>4}. {_table_line(entry.row, scorer)}")
        return
    records = [
        {
            "group": printable(entry.group),
            "order": entry.order,
            "place": entry.place,
            "tie": entry.tie,
            **as_record(entry.row, scorer, with_maps=False),
        }
        for entry in ranked
    ]
    _write(records, scorer, out, form)


def write_comparison(result: "Comparison", scorer: "Scorer", *, out: Path | None, form: str | None) -> None:
    """Write a comparison, a table with its conclusion as the last line; arguments as `write_scores`."""
    form = _form(form)
    if out is None and form == "table":
        _line(describe(scorer))
        width = max(len(_shown(name)) for name in result.names)
        for label, name, images, mean in zip("AB", result.names, result.images, result.means, strict=True):
            bar = _bar(mean, scorer)
            _line(f"{label}  {_shown(name):<{width}}  {images:>6} images  mean {mean:6.3f}  {bar}")
        _line(f"A - B  {_difference(result)}")
        _line(f"({_shown(result.method)})")
        if any(result.left_out):
            _line("left out, since the other set has no counterpart: {} images of A, {} of B".format(*result.left_out))
        what = "pairs" if result.grouped_by == "name" else "prompts"
        if not result.paired:
            what = f"pairs of one {'image' if result.grouped_by == 'name' else 'prompt'} from each"
        count = result.groups[0] if result.paired else result.groups[0] * result.groups[1]
        _line(f"A wins {100 * result.wins:.1f} % of {count:,} {what}")
        _line(_caveat(result))
        _line(conclude(result, scorer))
        return
    record = asdict(result)
    of_sides = {
        "name": record.pop("names"), "images": record.pop("images"), "left_out": record.pop("left_out"),
        "groups": record.pop("groups"), "mean": record.pop("means"),
    }  # fmt: skip
    error = result.generator_error
    record |= {
        "generator_error": None if error is None else error.value,
        "generators": None if error is None else error.generators,
    }
    record = {
        f"{key}_{side}": pair[place] for key, pair in of_sides.items() for place, side in enumerate("ab")
    } | record
    record |= {"scale_low": scorer.mos_low, "scale_high": scorer.mos_high}
    _write([record], scorer, out, form, key="comparison")


def conclude(result: "Comparison", scorer: "Scorer") -> str:
    """Return a comparison's conclusion as a sentence, with the difference, its interval, and why nothing is shown."""
    scale = "on the MOS scale" if scorer.calibration is not None else "on a scale that is not calibrated"
    said = f"A - B is {_difference(result, scale)}"
    if result.conclusion != "not shown":
        return f"Conclusion: A is {result.conclusion}: {said}"
    if result.margin is None:
        from pipeline.scoring.compare import LEAST  # imported here: brings in scipy.stats, which scores need not

        things = "pairs" if result.grouped_by == "name" and result.paired else "prompts"
        why = f"fewer than {LEAST} {'images' if result.grouped_by == 'name' and not result.paired else things} of a set"
    elif result.low <= 0 <= result.high:
        why = "the interval holds 0"
    else:
        why = f"with the model's error by generator, only a difference over {result.margin:.3f} is shown"
    return f"Conclusion: not shown which is better: {said}; {why}"


def _difference(result: "Comparison", scale: str = "") -> str:
    told = f"{result.difference:+.3f}{scale and ' ' + scale}"
    return told if result.low is None else f"{told}, 95 % interval {result.low:+.3f} to {result.high:+.3f}"


def _caveat(result: "Comparison") -> str:
    """Return what the interval does not hold."""
    told = "The interval holds the choice of images alone"
    error = result.generator_error
    if error is None:
        return f"{told}: how far this model errs by generator, nobody has measured"
    told += (
        f": on its test images the model misjudged a generator's mean by {error.value:.2f} typically "
        f"({error.generators} generators)"
    )
    return told if result.margin is None else f"{told}; a difference below {result.margin:.2f} may be chance or that"


def shows_table(out: Path | None, form: str | None) -> bool:
    """Return whether output goes to standard output as a table; arguments as `write_scores`."""
    return out is None and _form(form) == "table"


def _form(form: str | None) -> str:
    return form or ("table" if sys.stdout.isatty() else "csv")


def _write(
    records: Sequence[dict[str, Any]], scorer: "Scorer", out: Path | None, form: str = "json", *, key: str = "images"
) -> None:
    kind = form if out is None else out.suffix.lower()[1:]
    if kind == "json":
        document = {"checkpoint": about(scorer), key: list(records)}
        data = (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()
    elif kind == "csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(records[0]) if records else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        data = text.getvalue().encode()
    else:
        data = _parquet(records)
    if out is None:
        sys.stdout.write(data.decode())
    else:
        write_atomically(out, data)


def _parquet(records: Sequence[dict[str, Any]]) -> bytes:
    """Return rows as a Parquet file whose columns have the same types whatever is missing."""
    import pandas as pd  # imported here: costs half a second, and comes with an extra

    frame = pd.DataFrame(list(records))
    kinds = {
        **dict.fromkeys(("width", "height", "level", "generators"), "Int64"),
        "unfamiliar": "boolean",
        **dict.fromkeys(("low", "high", "margin", "generator_error"), "float64"),
        **dict.fromkeys(("error", "quality_map"), "string"),
    }
    frame = frame.astype({name: kind for name, kind in kinds.items() if name in frame})
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def summary(rows: Sequence[Row], scorer: "Scorer") -> str:
    """Return how many images have a score, their mean, and how many have none."""
    scores = [row.score for row in rows if row.score is not None]
    strange = sum(bool(row.unfamiliar) for row in rows)
    return told(len(scores), len(rows) - len(scores), strange, float(np.sum(scores)), scorer)


def told(scored: int, failed: int, unfamiliar: int, sum_of_scores: float, scorer: "Scorer") -> str:
    """Return `summary` of images that were counted elsewhere."""
    text = f"{scored:,} image{'s' * (scored != 1)} scored"
    if scored:
        text += f", mean {sum_of_scores / scored:.3f} on the scale {scorer.mos_low:g} to {scorer.mos_high:g}"
    if unfamiliar:
        text += f"; {unfamiliar:,} unfamiliar: unlike the training images, so nobody vouches for score and band"
    if failed:
        text += f"; {failed:,} could not be: the rows with an error say why"
    return text


def _line(text: str) -> None:
    if sys.stdout.isatty():
        tqdm.write(text, file=sys.stdout)  # above the progress bar, which shares the terminal
    else:
        sys.stdout.write(text + "\n")


def _band_title(scorer: "Scorer") -> str:
    return "" if scorer.calibration is None else f"{scorer.level} % band"


def _scale(scorer: "Scorer") -> str:
    low, high = f"{scorer.mos_low:g}", f"{scorer.mos_high:g}"
    return low + " " * (BAR - len(low) - len(high)) + high


def _bar(score: float, scorer: "Scorer") -> str:
    share = (score - scorer.mos_low) / (scorer.mos_high - scorer.mos_low)
    eighths = round(8 * BAR * min(1.0, max(0.0, share)))
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + " ▏▎▍▌▋▊▉"[rest] * (rest > 0)).ljust(BAR, "·")


def _table_line(row: Row, scorer: "Scorer") -> str:
    if row.score is None:
        return f"{'-':>6}  {_shown(row.image)}: {row.error}"
    band = " " * 13 if row.low is None else f"{row.low:5.2f} - {row.high:<5.2f}"
    mark = "  unfamiliar" if row.unfamiliar else ""
    return f"{row.score:6.2f}  {band} {_bar(row.score, scorer)}  {_shown(row.image)}{mark}"


def _shown(text: str) -> str:
    """Return a path that cannot move the cursor or break a line: what is not printable is spelt out."""
    clean = printable(text)
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in clean)
