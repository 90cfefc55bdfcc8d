"""What the report says, section by section: the answer first, then what carries it.

The first screen is the answer with its chart and table and what is not shown; hashes come last. The page and summary.md
are two forms of the same sections, so that they cannot disagree.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from pipeline.layout import rated_by
from pipeline.report import words, worth
from pipeline.report.answer import Answer, Headline, verdict
from pipeline.report.chart import Chart
from pipeline.report.citation import bibtex
from pipeline.report.figures import Picture
from pipeline.report.formats import Table
from pipeline.report.results import Results
from pipeline.report.significance import Evidence
from pipeline.report.summaries import REFERENCE

KINDS = {
    "best": "Best predicted, from low to high MOS",
    "over": "Most overrated: predicted higher than {who} say",
    "under": "Most underrated: predicted lower than {who} say",
}
# What it is (text, heading, headline, facts, table, folded, figure, gallery or code), and its content. In texts, `code`
# and **strong** are marked as in Markdown; what is folded is a title and blocks.
Block = tuple[str, Any]


class Section(NamedTuple):
    """A numbered section: its anchor, title and content."""

    name: str
    title: str
    blocks: list[Block]

    @property
    def is_line(self) -> bool:
        """Whether it has nothing to show but a sentence that says why."""
        return len(self.blocks) == 1 and self.blocks[0][0] == "text"


class Card(NamedTuple):
    """A picture of the gallery: the files of the image and of its map (None if there is none), and words about it.

    `told` says which number stands beside the MOS: the score that a user is told, or of earlier versions the fit.
    """

    picture: Path
    map: Path | None
    alt: str
    mos: str
    told: str
    generator: str
    prompt: str


def arrange(
    results: Results,
    summary: pd.DataFrame,
    evidence: Mapping[str, Evidence],
    tables: Sequence[Table],
    figures: Sequence[Picture],
    charts: Sequence[Chart] = (),
    *,
    generated: Sequence[str] = (),
    audited: Sequence[str] = (),
    lock: str | None = None,
    citation: str | None = None,
) -> list[Section]:
    """Return the sections of the report.

    Args:
        results: What the runs wrote.
        summary: Result of `pipeline.report.summaries.summarise`.
        evidence: By data set.
        tables: From `pipeline.report.tables`; each stands in the section that its name says.
        figures: Each stands in the section that its name says.
        charts: From `pipeline.report.chart.chart_of`, by data set.
        generated: Those of the data sets that the project makes itself.
        audited: The variants whose leaks the study measures.
        lock: From `pipeline.report.citation.lock_md5`; None where there is no dvc.lock.
        citation: Text of CITATION.cff; None where there is none.
    """
    shown = {table.name: table for table in tables}
    drawn = {figure.name: figure for figure in figures}

    def tables_of(*names: str) -> list[Block]:
        return [("table", shown[name]) for name in names if name in shown]

    def folded(name: str, title: str) -> list[Block]:
        return [("folded", (title, [("table", shown[name])]))] if name in shown else []

    def figures_of(*names: str) -> list[Block]:
        return [("figure", drawn[name]) for name in names if name in drawn]

    datasets = list(dict.fromkeys(summary["dataset"]))
    charted = {chart.dataset: chart for chart in charts}
    answers: list[Answer] = []
    names = ("data", "score", "tests", "ablation", "generators", "pictures")
    parts: dict[str, list[Block]] = {name: [] for name in names}
    for dataset in datasets:
        rows = summary[summary["dataset"] == dataset]
        target = results.runs.loc[results.runs["dataset"] == dataset, "target"].iloc[0]
        head: list[Block] = [("heading", dataset)] if len(datasets) > 1 else []
        who = rated_by(results.cards[dataset])
        found = verdict(rows, evidence[dataset], dataset in generated, who)
        answers.append(Answer(dataset, found, charted.get(dataset), shown.get(f"main-{dataset}")))
        said = [words.data_line(results, dataset, target), words.split_audit_line(results, dataset)]
        parts["data"] += [*head, *(("text", text) for text in said)]
        worths = tables_of(f"score-{dataset}", f"score-generators-{dataset}")
        worths[1:1] = figures_of(f"band-{dataset}")
        parts["score"] += [*head, *worths] if worths else []
        pairs = figures_of(f"outcomes-{dataset}") + folded(f"tests-{dataset}", f"All pairs of {dataset}")
        parts["tests"] += [*head, *pairs] if pairs else []
        parts["ablation"] += tables_of(f"ablation-{dataset}")
        means, within = tables_of(f"generators-{dataset}"), tables_of(f"within-{dataset}")
        parts["generators"] += [*head, *figures_of(f"generators-{dataset}"), *means, *within]
        looks = figures_of(*(f"{kind}-{dataset}" for kind in ("scatter", "calibration", "curves", "residuals")))
        lacks = [] if f"residuals-{dataset}" in drawn else [("text", f"{dataset} publishes no MOS standard deviation.")]
        parts["pictures"] += [*head, *_gallery(results, dataset, rows), *looks, *lacks]
    grids = tables_of(*(name for name in shown if name.startswith("audit-")))
    return [
        Section("answer", "The answer", [("headline", Headline(answers, drawn.get("comparison")))]),
        Section("data", "The data and the protocol", [*parts["data"], ("text", words.protocol(results.runs))]),
        Section("score", "What a score is worth", _worth(parts["score"])),
        Section("tests", "Is the difference real?", _tests(results, evidence) + parts["tests"]),
        Section("leaks", "What leaks are worth", _leaks(results, audited) + grids + tables_of("audit")),
        Section(
            "ablation",
            "What each part is worth",
            parts["ablation"]
            or [("text", f"Not measured: it needs `{REFERENCE}` and another variant in `study.variants`.")],
        ),
        Section(
            "cross",
            "From one data set to another",
            _cross(datasets) + figures_of("cross") + folded("cross", "All pairs of data sets"),
        ),
        Section("generators", "Generator by generator", parts["generators"]),
        Section("pictures", "A look at the pictures", parts["pictures"]),
        Section("cost", "What it costs", [("text", _spent(results.costs)), *tables_of("cost")]),
        Section("rerun", "Cite and rerun", _rerun(results, lock, citation, shown.get("settings"))),
    ]


def _worth(blocks: list[Block]) -> list[Block]:
    if not blocks:
        why = "Not known: these results are of an earlier version. `dvc repro` computes what a score is worth."
        return [("text", why)]
    return [("text", worth.ABOUT), *blocks]


def _tests(results: Results, evidence: Mapping[str, Evidence]) -> list[Block]:
    if all(found.pairs.empty for found in evidence.values()):
        return [("text", "Not asked: one method alone has nothing to be compared with.")]
    rounds, pairs = results.runs["round"].nunique(), max(len(found.pairs) for found in evidence.values())
    method = (
        "**Method.** The SRCC difference of every pair of methods is tested by a jackknife over prompt groups, each "
        "left out of all methods and rounds at once, whose error is compared with Student's t: it asks whether other "
        "prompts could have turned the order, and assumes that prompt groups are independent of each other; the "
        "trained models stand as they are."
    )
    if rounds > 1:
        method += (
            f" A t-test over the {rounds} rounds, its variance corrected for the images that they share (Nadeau and "
            "Bengio, 2003), asks whether other splits and trainings could have turned the order, and assumes roughly "
            "normal differences. A win or a loss needs both tests. Where the first alone finds a difference, the "
            "method is ahead or behind on these trainings, and others may turn it."
        )
    else:
        method += (
            " One round leaves no test over splits and trainings, so no method wins or loses here: it is ahead or "
            "behind on these trainings alone."
        )
    method += (
        f" Holm's correction over the {pairs} pairs of a data set keeps the chance of any false win or loss among them "
        "at 5 % in each test. A tie is no proof of equality."
    )
    if 1 < rounds < 5:
        method += f" With {rounds} rounds the t-test has little power: it will miss many true differences."
    return [("text", method)]


def _leaks(results: Results, audited: Sequence[str]) -> list[Block]:
    if not audited:
        return [
            (
                "text",
                "Not measured: name variants under `study.audit`, such as `[dcmpln]`, and run `dvc repro`.",
            )
        ]
    if results.leaks.empty:
        return [("text", "Not measured: the study's own rounds leak, so there is no clean score to start from.")]
    return [
        (
            "text",
            "Two habits of published code let test data in: images drawn at random, so that train has seen the test "
            "images' generation prompts, and the epoch picked by the test score. The same model was trained and "
            "judged with and without each, on subsets of the same sizes. What a habit adds is no skill; a published "
            "number got that way is better read without it.",
        )
    ]


def _cross(datasets: Sequence[str]) -> list[Block]:
    if len(datasets) < 2:
        return [("text", "Not measured: a study of one data set has nothing to transfer to.")]
    return [
        ("text", "Each model scores the other data sets' test images of the same round; nothing is fitted to them.")
    ]


def _gallery(results: Results, dataset: str, rows: pd.DataFrame) -> list[Block]:
    table = results.gallery[results.gallery["dataset"] == dataset]
    if table.empty:
        return [("text", f"The evaluations of {dataset} left no pictures.")]
    first = table.iloc[0]
    pictures = {
        kind: [_card(row) for row in table[table["kind"] == kind].sort_values("rank").to_dict("records")]
        for kind in KINDS
    }
    text = f"Test images of `{first['method']}`, round {first['round']}. "
    if _is_told(first):
        text += "Score: what a user is told, on the MOS scale by a curve from validation images. "
    else:
        text += "Fitted: the prediction on the MOS scale after the logistic fit on these very test images. "
    if "map_low" in table:
        text += (
            f"Map: which parts lower the score (vermillion, {first['map_low']:.3f} or less) and which raise it (blue, "
            f"{first['map_high']:.3f} or more), by the raw score of the windows there. "
        )
    text = words.titled(text.removesuffix(". "), rows[rows["method"] == first["method"]])
    who = rated_by(results.cards[dataset])
    shown = [(KINDS[kind].format(who=who), cards) for kind, cards in pictures.items() if cards]
    return [("gallery", {"dataset": dataset, "text": text, "kinds": shown})]


def _card(row: dict[str, Any]) -> Card:
    folder, prompt = Path(row["folder"]), row["generation_prompt"]
    prompt = "" if pd.isna(prompt) else str(prompt)
    return Card(
        folder / row["picture"],
        None if pd.isna(row["map"]) else folder / row["map"],
        f"Image generated from: {prompt}" if prompt else f"Image {row['image_id']}",
        f"{row['mos']:.2f}",
        f"score {row['score']:.2f}" if _is_told(row) else f"fitted {row['fitted']:.2f}",
        str(row["generator"]),
        prompt,
    )


def _is_told(row: Mapping[str, Any]) -> bool:
    """Whether a row of the gallery has the score that a user is told; earlier versions had none."""
    return pd.notna(row.get("score"))


def _rerun(results: Results, lock: str | None, citation: str | None, settings: Table | None) -> list[Block]:
    blocks: list[Block] = []
    if citation:
        blocks += [("text", "**To cite** this software and the paper that it implements:"), ("code", bibtex(citation))]
    commit = next((commit for commit in results.costs["git_commit"] if commit), None)
    data = results.runs.drop_duplicates("dataset")[["dataset", "manifest_md5"]].to_dict("records")
    commands = [f"git checkout {commit}"] if commit else []
    commands += [
        "make setup && . .venv/bin/activate",
        "dvc repro   # with the params.yaml of this study; `dvc pull` first where its results were shared",
        *(f"md5sum data/prepared/{row['dataset']}/manifest.parquet   # {row['manifest_md5']}" for row in data),
    ]
    if lock:
        check = "from pipeline.report.citation import lock_md5; print(lock_md5('dvc.lock'))"
        commands.append(f'python -c "{check}"   # {lock}')
    rerun: list[Block] = [
        ("text", "In a clone of the repository; a command that prints a hash must print its comment:"),
        ("code", "\n".join(commands)),
    ]
    if bool(results.costs["git_dirty"].fillna(False).any()):
        rerun.append(
            ("text", "Some runs were made with uncommitted changes, which a commit alone does not bring back.")
        )
    blocks.append(("folded", ("To rerun exactly this", rerun)))
    blocks.append(
        ("folded", ("Provenance: data, code and weights by their hashes", [("facts", _facts(results, lock))]))
    )
    if settings:
        blocks.append(("folded", ("Every value that the variants were trained with", [("table", settings)])))
    return blocks


def _facts(results: Results, lock: str | None) -> list[tuple[str, str]]:
    """What the runs were made from, by commit and hash."""
    runs, costs = results.runs, results.costs
    weights = runs[runs["backbone_origin"] != "none"].drop_duplicates(["backbone", "backbone_sha256"])
    several = len(weights) > 1
    hashes = [
        (f"{row['backbone']}, " * several)
        + (f"SHA-256 `{row['backbone_sha256']}`" if row["backbone_sha256"] else "no file")
        for row in weights.to_dict("records")
    ]
    data = runs.drop_duplicates(["dataset", "manifest_md5"])[["dataset", "manifest_md5"]].to_dict("records")
    commits = costs[["git_commit", "git_dirty"]].drop_duplicates().to_dict("records")
    code = [
        f"git commit `{row['git_commit'] or 'unknown'}`" + " with uncommitted changes" * bool(row["git_dirty"])
        for row in commits
    ]
    return [
        ("Weights of the backbone", "; ".join(hashes) or "none"),
        ("Data", "; ".join(f"{row['dataset']}: manifest md5 `{row['manifest_md5']}`" for row in data)),
        ("Code", "; ".join(code)),
        ("DVC lock", f"md5 `{lock}`, of dvc.lock without report and mirror" if lock else "no dvc.lock"),
        ("Device", ", ".join(dict.fromkeys(str(device) for device in costs["device"]))),
    ]


def _spent(costs: pd.DataFrame) -> str:
    """Return what all runs cost, each charged for the features that it reads, and how many of them under load."""
    measured = costs["scoring_seconds"].notna().all()
    scored = " and the scoring of their test images" if measured else "; the scoring was not measured"
    seconds = costs["train_seconds"].sum() + costs["scoring_seconds"].sum()
    text = f"{_duration(seconds)} on the clock"
    if costs[["train_cpu_seconds", "scoring_cpu_seconds"]].notna().all(axis=None):
        text += f", {_duration(costs[['train_cpu_seconds', 'scoring_cpu_seconds']].sum(axis=None))} of processors,"
    busy = int((costs["train_under_load"] | costs["scoring_under_load"]).sum())
    load = f"; the machine was under load in {busy} of them, which stretches the clock" if busy else ""
    return f"{text} for {len(costs)} trainings or fits{scored}{load}."


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(float(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        " ".join(f"{value} {unit}" for value, unit in ((hours, "h"), (minutes, "min"), (rest, "s")) if value) or "0 s"
    )
