"""The split rule: nothing shared, nothing that depends on row order, and the leak that `random` has."""

import re

import networkx
import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.data.labels import normalise_prompt
from pipeline.data.splits import SplitError, audit, audit_rounds, find_groups, split_round

SETTINGS = {"test_fraction": 0.2, "validation_fraction": 0.1, "seed": 0}


@pytest.fixture
def manifest() -> pd.DataFrame:
    """Return 240 images of 60 prompts, written in several ways, with identical files across prompts 0-1-2 and 7-8."""
    names = [f"{k:03d}.png" for k in range(240)]
    prompts = [f"A cat, no {k // 4}" if k % 2 else f"  a CAT,  no {k // 4}." for k in range(240)]
    bytes_ = [f"{k:064x}" for k in range(240)]
    for one, other in ((0, 4), (5, 8), (28, 32)):
        bytes_[other] = bytes_[one]
    return pd.DataFrame({"image_id": names, "generation_prompt": prompts, "prompt_group": prompts, "sha256": bytes_})


def test_groups_are_connected_components(manifest: pd.DataFrame) -> None:
    graph = networkx.Graph()
    for row in manifest.itertuples():
        graph.add_edge(row.image_id, "p" + row.prompt_group.lower().replace(" ", "").strip("."))
        graph.add_edge(row.image_id, "s" + row.sha256)
    expected = {
        frozenset(node for node in part if node.endswith(".png")) for part in networkx.connected_components(graph)
    }
    groups = find_groups(manifest)
    found = {frozenset(names) for names in groups.index.groupby(groups).values()}
    assert found == expected
    assert len(found) == 60 - 3
    assert groups["000.png"] == groups["011.png"]


def test_nothing_is_shared_and_sizes_are_right(manifest: pd.DataFrame) -> None:
    groups = find_groups(manifest)
    for number in range(5):
        split = split_round(manifest, groups, number, rule="grouped", **SETTINGS)
        assert split["image_id"].tolist() == sorted(manifest["image_id"])
        assert split.groupby("group")["subset"].nunique().max() == 1
        counts = split.groupby("subset")["group"].nunique()
        assert counts.to_dict() == {"test": 11, "validation": 5, "train": 41}
        found = audit(manifest, split)
        assert [value for key, value in found.items() if "shared" in key] == [0, 0, 0, 0]


def test_rounds_differ_and_every_group_is_tested_at_some_time(manifest: pd.DataFrame) -> None:
    groups = find_groups(manifest)
    tested = []
    for number in range(30):
        split = split_round(manifest, groups, number, rule="grouped", **SETTINGS)
        tested.append(frozenset(split.loc[split["subset"] == "test", "group"]))
    assert len(set(tested)) == 30
    assert frozenset().union(*tested) == set(groups)


def test_row_order_changes_nothing(manifest: pd.DataFrame) -> None:
    shuffled = manifest.sample(frac=1, random_state=3)
    one, other = (
        split_round(table, find_groups(table), 2, rule="grouped", **SETTINGS) for table in (manifest, shuffled)
    )
    pd.testing.assert_frame_equal(one, other)


def test_one_more_prompt_moves_almost_nothing(manifest: pd.DataFrame) -> None:
    fewer = manifest.iloc[:-4]
    one, other = (
        split_round(table, find_groups(table), 0, rule="grouped", **SETTINGS).set_index("image_id")["subset"]
        for table in (manifest, fewer)
    )
    assert (one[other.index] != other).mean() < 0.06


def test_the_random_rule_leaks_and_the_audit_counts_it(manifest: pd.DataFrame) -> None:
    groups = find_groups(manifest)
    split = split_round(manifest, groups, 0, rule="random", **SETTINGS)
    subset = split.set_index("image_id")["subset"]
    prompts = manifest["prompt_group"].map(normalise_prompt)
    test = set(prompts[manifest["image_id"].map(subset).eq("test").to_numpy()])
    rest = set(prompts[manifest["image_id"].map(subset).ne("test").to_numpy()])
    found = audit(manifest, split)
    assert found["shared_prompts"] == len(test & rest) > 20
    assert audit_rounds(manifest, {0: split}, "d", "random", **SETTINGS)["leaking"] is True


def test_a_grouped_split_that_leaks_is_a_fault(manifest: pd.DataFrame) -> None:
    split = split_round(manifest, find_groups(manifest), 0, rule="grouped", **SETTINGS)
    split.loc[split.index[split["subset"] == "test"][0], "subset"] = "train"
    with pytest.raises(RuntimeError, match="the grouped split of d shares prompts or images between its subsets"):
        audit_rounds(manifest, {0: split}, "d", "grouped", **SETTINGS)


def test_too_few_groups_and_unknown_rules_are_refused(manifest: pd.DataFrame) -> None:
    few = manifest.iloc[:12]
    with pytest.raises(SplitError, match=re.escape("12 images in 1 prompt groups give 12 to train, 0 to val")):
        split_round(few, find_groups(few), 0, rule="grouped", **SETTINGS)
    few = manifest.iloc[100:124]
    message = (
        "24 images in 6 prompt groups give 20 to train, 0 to validation, 4 to test in round 0; at least 8 to train, "
        "3 to validation, 4 to test are needed: change split.test_fraction or split.validation_fraction, or use a "
        "larger data set"
    )
    with pytest.raises(SplitError, match=re.escape(message)):
        split_round(few, find_groups(few), 0, rule="grouped", **SETTINGS)
    with pytest.raises(SplitError, match=re.escape("split.rule is 'prompt': use 'grouped' or 'random'")):
        split_round(few, find_groups(few), 0, rule="prompt", **SETTINGS)


def test_splits_are_the_same_on_every_machine() -> None:
    """Held against a plain restatement: groups in the order of sha256('seed/round/name')."""
    import hashlib

    table = pd.DataFrame(
        {
            "image_id": [f"{k}.png" for k in range(20)],
            "prompt_group": [f"p{k}" for k in range(20)],
            "sha256": [f"{k:064x}" for k in range(20)],
        }
    )
    names = {k: "g-" + hashlib.sha256(f"{k}.png".encode()).hexdigest()[:10] for k in range(20)}
    order = sorted(names, key=lambda k: hashlib.sha256(f"4/1/{names[k]}".encode()).digest())
    split = split_round(
        table, find_groups(table), 1, rule="grouped", test_fraction=0.2, validation_fraction=0.25, seed=4
    ).set_index("image_id")["subset"]
    assert {f"{k}.png" for k in order[:4]} == set(split[split == "test"].index)
    assert {f"{k}.png" for k in order[4:8]} == set(split[split == "validation"].index)
    assert np.array_equal(np.sort(split.unique()), ["test", "train", "validation"])


@settings(deadline=None, max_examples=60)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 200)), min_size=40, max_size=160),
    number=st.integers(0, 9),
    order=st.randoms(use_true_random=False),
)
def test_whatever_shares_prompts_and_files_no_prompt_and_no_file_stands_in_two_subsets(
    pairs: list[tuple[int, int]], number: int, order: object
) -> None:
    table = pd.DataFrame(
        {
            "image_id": [f"{k:03d}.png" for k in range(len(pairs))],
            "prompt_group": [f"prompt {prompt}" for prompt, _ in pairs],
            "sha256": [f"{file:064x}" for _, file in pairs],
        }
    )
    groups = find_groups(table)
    assume(groups.nunique() >= 12)
    try:
        found = split_round(table, groups, number, rule="grouped", **SETTINGS)
    except SplitError:
        assume(False)
    subset = found.set_index("image_id")["subset"]
    assert sorted(subset.index) == sorted(table["image_id"])
    for column in ("prompt_group", "sha256"):
        assert (table.assign(subset=table["image_id"].map(subset)).groupby(column)["subset"].nunique() == 1).all()
    shuffled = list(range(len(table)))
    order.shuffle(shuffled)
    again = split_round(table.iloc[shuffled], find_groups(table.iloc[shuffled]), number, rule="grouped", **SETTINGS)
    pd.testing.assert_series_equal(again.set_index("image_id")["subset"].loc[subset.index], subset)
