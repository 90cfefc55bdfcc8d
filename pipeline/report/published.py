"""Published results on the study's data sets, as data: what each row says, where it was read and by which protocol.

The figures do not share one protocol, so every row carries how its method split the data and chose its epoch, as far
as that is known. A report that prints a row without its protocol compares things that cannot be compared.
"""

from collections.abc import Sequence
from typing import NamedTuple

PROMPT_DISJOINT = "prompt-disjoint"
SHARED_PROMPTS = "shared prompts"
RANDOM = "random"
UNKNOWN = "unknown"
BEST_ON_TEST = "best epoch on test"
ON_VALIDATION = "best epoch on validation"
NOT_STATED = "not stated"
VERIFIED = "V"
SECOND_HAND = "2nd"


class Published(NamedTuple):
    """One published result.

    Attributes:
        method: Name as published.
        year: Year of publication; None where our source does not give it.
        dataset: Our name of the data set.
        attribute: quality, alignment, authenticity or correspondence (AIGCIQA2023's word for alignment).
        srcc: Spearman's rank correlation with MOS, in [-1, 1].
        plcc: Pearson's linear correlation with MOS, in [-1, 1]; see `fit`.
        split: prompt-disjoint, shared prompts (some or all test prompts also stand in train), random, or unknown.
        selection: best epoch on test, best epoch on validation, or unknown.
        source: Where the figure was read.
        tag: V: read in the named source or computed from its files; 2nd: quoted by a third party.
        note: What else a reader must know; empty if nothing.
        fit: Whether PLCC is of the scores as they are, or was taken after a fit to the test images' MOS: "raw", "fitted
            on test", or not stated where the figure was read, which is so of every row.
    """

    method: str
    year: int | None
    dataset: str
    attribute: str
    srcc: float
    plcc: float
    split: str
    selection: str
    source: str
    tag: str
    note: str = ""
    fit: str = NOT_STATED

    @property
    def protocol(self) -> str:
        """Split and selection in a few words, for a table cell."""
        return _protocol(self.split, self.selection)


class PublishedCross(NamedTuple):
    """One published cross-data-set result, quality: trained on one data set, tested on another."""

    method: str
    year: int | None
    trained_on: str
    tested_on: str
    srcc: float
    split: str
    selection: str
    source: str
    tag: str

    @property
    def protocol(self) -> str:
        """Split and selection in a few words, for a table cell."""
        return _protocol(self.split, self.selection)


def _protocol(split: str, selection: str) -> str:
    if split == selection == UNKNOWN:
        return UNKNOWN
    return f"{'split unknown' if split == UNKNOWN else split}, " + (
        "epoch selection unknown" if selection == UNKNOWN else selection
    )


# How each method's own public code splits a data set and chooses its epoch, where that could be read. A (method, data
# set) pair that is not here is unknown; nothing is inferred from one data set to another.
_SPLITS = {
    ("CLIP-AGIQA", "agiqa3k"): PROMPT_DISJOINT,
    ("CLIP-AGIQA", "aigciqa2023"): PROMPT_DISJOINT,
    ("IPCE", "agiqa3k"): PROMPT_DISJOINT,
    ("IPCE", "aigciqa2023"): SHARED_PROMPTS,
    ("ACL-IQA", "agiqa3k"): PROMPT_DISJOINT,
    ("MA-AGIQA", "agiqa3k"): RANDOM,
}
_SELECTIONS = {"CLIP-AGIQA": BEST_ON_TEST, "IPCE": BEST_ON_TEST, "ACL-IQA": BEST_ON_TEST}

_NOTES = {
    ("IPCE", "aigciqa2023"): "its public code puts all 99 to 100 test prompts in train as well",
    ("MA-AGIQA", "agiqa3k"): "all 268 test prompts also stand in train; reruns by its users gave SRCC .8820 to .8839",
    ("IP-IQA", "agiqa3k"): "a rerun is quoted at SRCC .8261, PLCC .8835, its data set not named",
}

# Table 1 of the DCMPLN paper (Displays 91, 2025, 103208), quality: SRCC and PLCC on AGIQA-3K, then on AIGCIQA2023.
_TABLE_1_SOURCE = "DCMPLN paper, Table 1"
_TABLE_1 = (
    ("NIQE", None, 0.5623, 0.5171, 0.5060, 0.5218),
    ("BMPRI", None, 0.6794, 0.7912, 0.6732, 0.7492),
    ("HIGRADE", None, 0.6171, 0.7065, 0.4849, 0.4966),
    ("CNNIQA", None, 0.7478, 0.8469, 0.7160, 0.7937),
    ("DB-CNN", None, 0.8207, 0.8759, 0.8339, 0.8577),
    ("ResNet50", None, 0.8252, 0.8863, 0.8113, 0.8416),
    ("StairIQA", None, 0.8235, 0.8864, 0.8186, 0.8450),
    ("HyperIQA", None, 0.8355, 0.8903, 0.8174, 0.8459),
    ("RichIQA", None, 0.8592, 0.8976, 0.8245, 0.8564),
    ("CLIP-IQA", None, 0.6846, 0.6987, 0.4171, 0.3970),
    ("CLIP-IQA+", None, 0.8426, 0.8053, 0.8072, 0.8280),
    ("CLIP-AGIQA", 2024, 0.8747, 0.9190, 0.8324, 0.8604),
)

# Newer work: (SRCC, PLCC) by column, None where nothing was published.
_NEWER_COLUMNS = (
    ("agiqa3k", "quality"),
    ("agiqa3k", "alignment"),
    ("aigciqa2023", "quality"),
    ("aigciqa2023", "authenticity"),
    ("aigciqa2023", "correspondence"),
    ("agiqa1k", "quality"),
)
_NEWER = (
    (
        *("ACL-IQA", 2026, "its paper"),
        ((0.8969, 0.9282), (0.7832, 0.8800), (0.8720, 0.8865), (0.8180, 0.8083), (0.8092, 0.8005), (0.8617, 0.8885)),
    ),
    (
        *("M3-AGIQA", 2025, "its paper"),
        ((0.9045, 0.9317), (0.8523, 0.9142), (0.8618, 0.8922), (0.8282, 0.8165), (0.8060, 0.7973), None),
    ),
    (*("MA-AGIQA", 2024, "a published table"), ((0.8939, 0.9273), None, (0.8384, 0.8606), None, None, None)),
    (
        *("IPCE", 2024, "ACL-IQA and M3-AGIQA papers, tables"),
        ((0.8841, 0.9246), (0.7697, 0.8725), (0.8640, 0.8788), (0.8097, 0.7998), (0.7979, 0.7887), (0.8535, 0.8792)),
    ),
    (
        *("LIQE", 2023, "ACL-IQA paper, table"),
        ((0.8742, 0.8934), (0.7338, 0.8205), (0.8534, 0.8758), None, (0.7780, 0.7696), None),
    ),
    (
        *("IP-IQA", 2024, "ACL-IQA paper, table"),
        ((0.8634, 0.9116), (0.7578, 0.8544), None, None, None, (0.8401, 0.8922)),
    ),
    (*("MANIQA", None, "a published table"), ((0.8618, 0.9115), None, (0.8269, 0.8464), None, None, None)),
    (
        *("Q-Align", None, "ACL-IQA paper, table"),
        ((0.8058, 0.8268), (0.7820, 0.8477), (0.7975, 0.8300), None, (0.7398, 0.7157), None),
    ),
)


def _row(
    method: str, year: int | None, dataset: str, attribute: str, figures: tuple[float, float], source: str, tag: str
) -> Published:
    return Published(
        method,
        year,
        dataset,
        attribute,
        *figures,
        split=_SPLITS.get((method, dataset), UNKNOWN),
        selection=_SELECTIONS.get(method, UNKNOWN),
        source=source,
        tag=tag,
        note=_NOTES.get((method, dataset), ""),
    )


PUBLISHED: tuple[Published, ...] = (
    *(
        _row(method, year, dataset, "quality", figures, _TABLE_1_SOURCE, SECOND_HAND)
        for method, year, *numbers in _TABLE_1
        for dataset, figures in (("agiqa3k", (numbers[0], numbers[1])), ("aigciqa2023", (numbers[2], numbers[3])))
    ),
    *(
        _row(method, year, dataset, attribute, figures, source, VERIFIED)
        for method, year, source, cells in _NEWER
        for (dataset, attribute), figures in zip(_NEWER_COLUMNS, cells, strict=True)
        if figures is not None
    ),
)

PUBLISHED_CROSS: tuple[PublishedCross, ...] = tuple(
    PublishedCross(method, year, trained_on, tested_on, srcc, UNKNOWN, BEST_ON_TEST, source, VERIFIED)
    for method, year, source, pairs in (
        ("ACL-IQA", 2026, "its paper", (0.761, 0.760)),
        ("IPCE", 2024, "ACL-IQA paper, table", (0.695, 0.721)),
    )
    for trained_on, tested_on, srcc in (("aigciqa2023", "agiqa3k", pairs[0]), ("agiqa3k", "aigciqa2023", pairs[1]))
)


def published_for(dataset: str, attribute: str) -> list[Published]:
    """Return the published rows of one data set and attribute, prompt-disjoint first, then by SRCC.

    Args:
        dataset: Our name of the data set; any other name has no rows.
        attribute: A target of the study. `alignment` also finds AIGCIQA2023's `correspondence`.

    Returns:
        The rows; empty where nothing is published.
    """
    words = {attribute, "correspondence"} if attribute == "alignment" else {attribute}
    rows = [row for row in PUBLISHED if row.dataset == dataset and row.attribute in words]
    return sorted(rows, key=lambda row: (row.split != PROMPT_DISJOINT, -row.srcc, row.method))


def fits(rows: Sequence[Published]) -> str:
    """Return in words whether the rows' PLCC was taken after a fit on test: `not stated (all rows)`."""
    methods: dict[str, list[str]] = {}
    for row in rows:
        methods.setdefault(row.fit, []).append(row.method)
    return "; ".join(
        f"{fit} ({'all rows' if len(methods) == 1 else ', '.join(dict.fromkeys(names))})"
        for fit, names in methods.items()
    )


def published_cross(datasets: list[str]) -> list[PublishedCross]:
    """Return the published cross-data-set rows (quality) whose two data sets both stand in `datasets`."""
    return [row for row in PUBLISHED_CROSS if {row.trained_on, row.tested_on} <= set(datasets)]


def not_comparable(split: str, selection: str, origins: list[str], leaks: list[str]) -> list[str]:
    """Return why rows of ours cannot be set against a published row; empty when they can.

    Args:
        split: The published row's split.
        selection: The published row's way to choose its epoch.
        origins: Origins of the backbones of our rows: random, in-house or pretrained.
        leaks: Leaks of our rows; empty when they are clean.

    Returns:
        Reasons in plain words, ours first.
    """
    reasons = [f"our backbone is {origin}" for origin in ("random", "in-house") if origin in origins]
    reasons += [f"our rows leak ({'; '.join(leaks)})"] if leaks else []
    if split == selection == UNKNOWN:
        return [*reasons, "its protocol is unknown"]
    splits = {
        PROMPT_DISJOINT: [],
        SHARED_PROMPTS: ["its test prompts also stand in train"],
        RANDOM: ["its split is random"],
        UNKNOWN: ["its split is unknown"],
    }
    selections = {
        ON_VALIDATION: [],
        BEST_ON_TEST: ["its epoch was chosen on test"],
        UNKNOWN: ["how its epoch was chosen is unknown"],
    }
    return [*reasons, *splits[split], *selections[selection]]
