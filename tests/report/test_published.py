"""Published rows against the figures of the papers, and the reasons why a row cannot be set beside ours."""

import pytest

from pipeline.report.published import (
    PUBLISHED,
    PUBLISHED_CROSS,
    fits,
    not_comparable,
    published_cross,
    published_for,
)


def found(method: str, dataset: str, attribute: str = "quality") -> object:
    rows = [r for r in PUBLISHED if (r.method, r.dataset, r.attribute) == (method, dataset, attribute)]
    assert len(rows) == 1
    return rows[0]


@pytest.mark.parametrize(
    ("method", "dataset", "attribute", "srcc", "plcc", "tag"),
    [
        ("NIQE", "agiqa3k", "quality", 0.5623, 0.5171, "2nd"),
        ("NIQE", "aigciqa2023", "quality", 0.5060, 0.5218, "2nd"),
        ("CLIP-IQA", "aigciqa2023", "quality", 0.4171, 0.3970, "2nd"),
        ("CLIP-IQA+", "agiqa3k", "quality", 0.8426, 0.8053, "2nd"),
        ("CLIP-AGIQA", "agiqa3k", "quality", 0.8747, 0.9190, "2nd"),
        ("ACL-IQA", "agiqa3k", "quality", 0.8969, 0.9282, "V"),
        ("ACL-IQA", "aigciqa2023", "authenticity", 0.8180, 0.8083, "V"),
        ("ACL-IQA", "agiqa1k", "quality", 0.8617, 0.8885, "V"),
        ("M3-AGIQA", "aigciqa2023", "correspondence", 0.8060, 0.7973, "V"),
        ("MA-AGIQA", "aigciqa2023", "quality", 0.8384, 0.8606, "V"),
        ("IPCE", "agiqa3k", "alignment", 0.7697, 0.8725, "V"),
        ("LIQE", "aigciqa2023", "correspondence", 0.7780, 0.7696, "V"),
        ("IP-IQA", "agiqa1k", "quality", 0.8401, 0.8922, "V"),
        ("MANIQA", "aigciqa2023", "quality", 0.8269, 0.8464, "V"),
        ("Q-Align", "agiqa3k", "alignment", 0.7820, 0.8477, "V"),
    ],
)
def test_figures_are_those_of_the_papers(
    method: str, dataset: str, attribute: str, srcc: float, plcc: float, tag: str
) -> None:
    row = found(method, dataset, attribute)
    assert (row.srcc, row.plcc, row.tag) == (srcc, plcc, tag)


def test_row_counts_and_uniqueness() -> None:
    assert len([row for row in PUBLISHED if row.tag == "2nd"]) == 12 * 2
    assert len([row for row in PUBLISHED if row.tag == "V"]) == 6 + 5 + 2 + 6 + 4 + 3 + 2 + 4
    assert len({(row.method, row.dataset, row.attribute) for row in PUBLISHED}) == len(PUBLISHED)
    assert all(0 < row.srcc < 1 and 0 < row.plcc < 1 for row in PUBLISHED)
    assert not [row for row in PUBLISHED if row.method == "M3-AGIQA" and row.dataset == "agiqa1k"]


def test_protocols_are_the_ones_really_used() -> None:
    assert found("CLIP-AGIQA", "agiqa3k").protocol == "prompt-disjoint, best epoch on test"
    assert found("CLIP-AGIQA", "aigciqa2023").protocol == "prompt-disjoint, best epoch on test"
    assert found("IPCE", "agiqa3k").protocol == "prompt-disjoint, best epoch on test"
    assert found("IPCE", "aigciqa2023").protocol == "shared prompts, best epoch on test"
    assert found("ACL-IQA", "agiqa1k").protocol == "split unknown, best epoch on test"
    assert found("MA-AGIQA", "agiqa3k").protocol == "random, epoch selection unknown"
    assert found("MANIQA", "agiqa3k").protocol == "unknown"


def test_whether_a_plcc_was_fitted_is_said_of_every_row_and_never_guessed() -> None:
    assert {row.fit for row in PUBLISHED} == {"not stated"}  # no source at hand says
    rows = published_for("agiqa1k", "quality")
    assert fits(rows) == "not stated (all rows)"
    assert fits([rows[0]._replace(fit="raw"), *rows[1:3]]) == "raw (ACL-IQA); not stated (IPCE, IP-IQA)"


def test_prompt_disjoint_rows_come_first() -> None:
    names = [row.method for row in published_for("agiqa3k", "quality")]
    assert names[:4] == ["ACL-IQA", "IPCE", "CLIP-AGIQA", "M3-AGIQA"]
    assert names[-1] == "NIQE"
    assert len(names) == 20


def test_alignment_finds_what_aigciqa2023_calls_correspondence() -> None:
    rows = published_for("aigciqa2023", "alignment")
    assert {row.attribute for row in rows} == {"correspondence"}
    assert [row.srcc for row in rows] == [0.8092, 0.8060, 0.7979, 0.7780, 0.7398]
    assert published_for("demo", "quality") == []


def test_cross_rows_need_both_data_sets() -> None:
    assert published_cross(["agiqa3k", "agiqa1k"]) == []
    rows = {(row.method, row.trained_on): row.srcc for row in published_cross(["agiqa3k", "aigciqa2023"])}
    assert rows == {
        ("ACL-IQA", "aigciqa2023"): 0.761,
        ("ACL-IQA", "agiqa3k"): 0.760,
        ("IPCE", "aigciqa2023"): 0.695,
        ("IPCE", "agiqa3k"): 0.721,
    }
    assert {row.protocol for row in PUBLISHED_CROSS} == {"split unknown, best epoch on test"}


def test_reasons_against_a_comparison() -> None:
    same = ("prompt-disjoint", "best epoch on validation")
    assert not_comparable(*same, ["pretrained", "none"], []) == []
    assert not_comparable(*same, ["in-house", "none"], []) == ["our backbone is in-house"]
    assert not_comparable(*same, ["pretrained"], ["random split"]) == ["our rows leak (random split)"]
    assert not_comparable("random", "unknown", ["random"], []) == [
        "our backbone is random",
        "its split is random",
        "how its epoch was chosen is unknown",
    ]
    assert not_comparable("shared prompts", "best epoch on test", ["pretrained"], []) == [
        "its test prompts also stand in train",
        "its epoch was chosen on test",
    ]
    assert not_comparable("unknown", "unknown", ["pretrained"], []) == ["its protocol is unknown"]
