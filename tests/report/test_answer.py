"""The answer: its words against what the tests carry."""

import numpy as np
import pandas as pd
import pytest
from made_study import made_runs

from pipeline.report import answer, significance
from pipeline.report.answer import Verdict
from pipeline.report.summaries import summarise

SIDES = ("difference", "low", "high")


def verdict(
    srcc: dict[str, float], outcome: str, leaks: str = "", rounds: int = 3, kinds: dict[str, str] | None = None
) -> Verdict:
    """The answer on made-up rows: variant a, baseline z, and one tested pair of them."""
    kinds = kinds or {"a": "variant", "z": "baseline"}
    runs = made_runs(**{method: [value + 0.01 * number for number in range(rounds)] for method, value in srcc.items()})
    runs = runs.assign(kind=runs["method"].map(kinds), leaks=leaks, backbone_origin="pretrained")
    pairs = pd.DataFrame([{"first": "a", "second": "z", "outcome": outcome} | dict.fromkeys(SIDES, 0.1)])
    estimates = {method: {"srcc": np.array([value, value - 0.1, value + 0.1])} for method, value in srcc.items()}
    return answer.verdict(summarise(runs), significance.Evidence(estimates, pairs), False)


def test_best_without_reserve_is_what_is_ahead_of_all_in_both_tests() -> None:
    found = verdict({"a": 0.8, "z": 0.7}, "win")
    assert found.lead == (
        "On **demo** **`a`** is the best method: SRCC 0.810 ± 0.010, ahead of `z` over prompts, splits and trainings."
    )
    assert found.bounds.startswith("95 % over prompts [")
    assert "; over rounds [0.7" in found.bounds
    assert found.lacks == ["anything about images, prompts and generators unlike these"]


@pytest.mark.parametrize(
    ("outcome", "claim", "lack"),
    [
        (
            "ahead",
            "ahead of `z` on these trainings alone",
            "the order of `a` and `z` for other splits and trainings, which the rounds do not tell",
        ),
        ("tie", "not shown to differ from `z`", "any difference between `a` and `z`"),
        ("none", "", "anything about `z`, which lacks a score in some round"),
    ],
)
def test_a_mean_claims_no_order_that_the_tests_do_not_carry(outcome: str, claim: str, lack: str) -> None:
    found = verdict({"a": 0.8, "z": 0.7}, outcome)
    assert found.lead == f"On **demo** **`a`** has the highest mean: SRCC 0.810 ± 0.010{', ' + claim if claim else ''}."
    assert "best" not in found.lead
    assert found.lacks[0] == lack
    assert found.shown == []


def test_one_round_cannot_tell_of_others() -> None:
    found = verdict({"a": 0.8, "z": 0.7}, "ahead", rounds=1)
    assert found.lacks[0].endswith("which one round cannot tell")
    assert "over rounds" not in found.bounds
    assert "SRCC 0.800, ahead of" in found.lead


@pytest.mark.parametrize(
    ("outcome", "proof", "end"),
    [
        ("loss", "beats", "a difference over prompts, splits and trainings."),
        ("behind", "scores higher than", "a difference that the tests confirm on these trainings alone."),
        ("tie", "scores higher than", "a difference that the tests do not confirm."),
    ],
)
def test_a_baseline_that_is_best_is_named_and_the_best_variant_beside_it(outcome: str, proof: str, end: str) -> None:
    """The tests list a pair once, and the best method may be its second one."""
    found = verdict({"a": 0.5, "z": 0.7}, outcome)
    assert "**`z`**" in found.lead
    assert found.shown == [
        f"**The baseline `z` {proof} every variant**, of which `a` is the best, SRCC 0.510 ± 0.010: {end}"
    ]


def test_what_leaks_and_a_control_are_never_best() -> None:
    found = verdict({"a": 0.8, "z": 0.7}, "win", leaks="random split")
    assert found.lead == "On **demo** no method is named best: every one leaks."
    assert found.bounds == ""
    found = verdict({"a": 0.8, "z": 0.7}, "loss", kinds={"a": "control", "z": "baseline"})
    assert "**`z`**" in found.lead
    assert found.shown == ["`z` is a baseline; the study has no variant at all."]


def test_several_places_make_one_sentence() -> None:
    srcc = {"a": [0.8], "b": [0.7], "c": [0.6], "d": [0.5]}
    tests = [("a", "b", "tie"), ("a", "c", "ahead"), ("d", "a", "loss"), ("b", "c", "win")]
    pairs = pd.DataFrame([{"first": f, "second": s, "outcome": o} | dict.fromkeys(SIDES, 0.1) for f, s, o in tests])
    estimates = {method: {"srcc": np.array([0.6, 0.4, 0.8])} for method in srcc}
    found = answer.verdict(summarise(made_runs(**srcc)), significance.Evidence(estimates, pairs), False)
    assert found.lead == (
        "On **demo** **`a`** has the highest mean: SRCC 0.800, ahead of `d` over prompts, splits and trainings, "
        "ahead of `c` on these trainings alone and not shown to differ from `b`."
    )


@pytest.mark.parametrize(
    ("outcome", "lead", "lack"),
    [
        ("win", "is the best method: SRCC 0.800, ahead of all 4 others over prompts, splits and trainings.", None),
        (
            "tie",
            "has the highest mean: SRCC 0.800, not shown to differ from 4 others.",
            "any difference between `a` and `b`, `c`, `d` and `e`",
        ),
    ],
)
def test_many_methods_are_counted_in_the_sentence(outcome: str, lead: str, lack: str | None) -> None:
    pairs = pd.DataFrame([{"first": "a", "second": s, "outcome": outcome} | dict.fromkeys(SIDES, 0.1) for s in "bcde"])
    estimates = {method: {"srcc": np.array([0.6, 0.4, 0.8])} for method in "abcde"}
    runs = made_runs(a=[0.8], b=[0.7], c=[0.6], d=[0.5], e=[0.4])
    found = answer.verdict(summarise(runs), significance.Evidence(estimates, pairs), False)
    assert found.lead == f"On **demo** **`a`** {lead}"
    assert (lack in found.lacks) == (lack is not None)


def test_simulated_raters_are_no_people_and_weights_are_told() -> None:
    runs = made_runs(a=[0.5, 0.6])
    evidence = significance.Evidence(
        {"a": {"srcc": np.array([0.6, 0.4, 0.8])}}, pd.DataFrame(columns=["first", "second"])
    )
    found = answer.verdict(summarise(runs), evidence, True, "simulated raters")
    assert found.lacks[-3:] == [
        "what any method reaches on CLIP's published weights",
        "anything about images, prompts and generators unlike these",
        "how anyone but the simulated raters of this data set would rate an image",
    ]


def test_the_answer_says_what_scores_a_users_images_and_how_well() -> None:
    """The baseline is the best on validation, and so scores; the variant is the best on test."""
    runs = made_runs(a=[0.5, 0.6], z=[0.4, 0.5])
    runs = runs.assign(kind=runs["method"].map({"a": "variant", "z": "baseline"}), rmse_calibrated=0.4242)
    runs = runs.assign(validation_srcc=runs["method"].map({"a": 0.1, "z": 0.2}), coverage=[0.5, 0.5, 0.86, 0.9])
    pairs = pd.DataFrame([{"first": "a", "second": "z", "outcome": "tie"} | dict.fromkeys(SIDES, 0.1)])
    estimates = {method: {"srcc": np.array([0.6, 0.4, 0.8])} for method in "az"}
    found = answer.verdict(summarise(runs), significance.Evidence(estimates, pairs), False)
    assert "**`a`**" in found.lead
    said = "What a user is told, by the champion `z`, the best on validation: its calibrated score is off by 0.424 MOS "
    assert f"{said}(RMSE) on the test images, and its 90 % band holds 88.0 % of them." in found.shown
