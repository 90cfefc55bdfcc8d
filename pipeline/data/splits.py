"""The split rule: no generation prompt and no identical image may stand in two subsets."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.data.labels import normalise_prompt
from pipeline.errors import AgiqaError
from pipeline.layout import SUBSETS

LEAST = {"train": 8, "validation": 3, "test": 4}  # images, below which a correlation picks or says next to nothing


class SplitError(AgiqaError):
    """A data set that cannot be split as asked."""


def find_groups(manifest: pd.DataFrame) -> pd.Series:
    """Return each image's group: connected components of "same generation prompt" and "byte-identical image".

    Args:
        manifest: Columns image_id, prompt_group and sha256.

    Returns:
        Group names, indexed by image id; the same whatever the order of the rows.
    """
    prompts = manifest["prompt_group"].map(normalise_prompt)
    keys = pd.concat(["prompt " + prompts, "image " + manifest["sha256"]], ignore_index=True)
    codes, names = pd.factorize(keys, sort=True)
    images = np.tile(np.arange(len(manifest)), 2)
    size = len(manifest) + len(names)
    links = coo_array((np.ones(len(keys)), (images, len(manifest) + codes)), shape=(size, size))
    component = connected_components(links, directed=False)[1][: len(manifest)]
    # A component is named after its first image id, so that the name follows the content alone.
    first = manifest["image_id"].groupby(component).transform("min")
    names = "g-" + first.map(lambda name: hashlib.sha256(str(name).encode()).hexdigest()[:10])
    return pd.Series(names.to_numpy(), index=manifest["image_id"].to_numpy(), name="group")


def split_round(
    manifest: pd.DataFrame,
    groups: pd.Series,
    round_index: int,
    *,
    rule: str,
    test_fraction: float,
    validation_fraction: float,
    seed: int,
) -> pd.DataFrame:
    """Split a data set for one round.

    Args:
        manifest: As `find_groups`.
        groups: From `find_groups`.
        round_index: The round; each has a split of its own.
        rule: `grouped` deals out whole groups. `random` deals out images, which leaks: it exists to measure how much
            that is worth.
        test_fraction: Share of the groups (images under `random`) that test.
        validation_fraction: Share of the remaining ones that validate.
        seed: Of all rounds.

    Returns:
        Columns image_id, group, subset; sorted by image id.

    Raises:
        SplitError: If a subset would hold fewer images than LEAST; says how many there are and what would do.

    Source: the 80/20 split by prompt of the paper's lineage; validation groups carved out of train are this project's
        addition, so that the test set picks nothing.
    """
    if rule not in ("grouped", "random"):
        raise SplitError(f"split.rule is {rule!r}: use 'grouped' or 'random'")
    units = groups if rule == "grouped" else pd.Series(groups.index, index=groups.index)

    # An order by hash is the same on every machine and for every order of rows, and one more unit moves no other.
    def draw(unit: object) -> bytes:
        return hashlib.sha256(f"{seed}/{round_index}/{unit}".encode()).digest()

    ordered = sorted(units.unique(), key=draw)
    tests = round(test_fraction * len(ordered))
    validations = round(validation_fraction * (len(ordered) - tests))
    subset = dict.fromkeys(ordered, "train")
    subset |= dict.fromkeys(ordered[:tests], "test") | dict.fromkeys(ordered[tests : tests + validations], "validation")
    table = pd.DataFrame({"image_id": groups.index, "group": groups.to_numpy(), "subset": units.map(subset).to_numpy()})
    images = {name: int((table["subset"] == name).sum()) for name in SUBSETS}
    if any(images[name] < least for name, least in LEAST.items()):
        given = ", ".join(f"{count} to {name}" for name, count in images.items())
        needed = ", ".join(f"{least} to {name}" for name, least in LEAST.items())
        raise SplitError(
            f"{len(groups)} images in {groups.nunique()} prompt groups give {given} in round {round_index}; at least "
            f"{needed} are needed: change split.test_fraction or split.validation_fraction, or use a larger data set"
        )
    return table.sort_values("image_id", kind="stable").reset_index(drop=True)


def audit(manifest: pd.DataFrame, split: pd.DataFrame) -> dict[str, Any]:
    """Count what a split's subsets share, from the manifest's prompts and bytes and not from the groups.

    Args:
        manifest: Columns image_id, generation_prompt, prompt_group and sha256.
        split: From `split_round`.

    Returns:
        images and groups per subset; shared_prompts and shared_images, which count distinct prompts and distinct files
        of test that also stand in train or validation; and the same of validation against train.
    """
    table = manifest.set_index("image_id").loc[split["image_id"]].assign(subset=split["subset"].to_numpy())
    table["prompt"] = table["prompt_group"].map(normalise_prompt)
    parts = {name: table[table["subset"] == name] for name in SUBSETS}

    def common(column: str, one: str, others: Sequence[str]) -> int:
        seen = set().union(*(set(parts[other][column]) for other in others))
        return len(set(parts[one][column]) & seen)

    return {
        "images": {name: len(part) for name, part in parts.items()},
        "groups": {name: int(split.loc[split["subset"] == name, "group"].nunique()) for name in SUBSETS},
        "shared_prompts": common("prompt", "test", ("train", "validation")),
        "shared_images": common("sha256", "test", ("train", "validation")),
        "validation_shared_prompts": common("prompt", "validation", ("train",)),
        "validation_shared_images": common("sha256", "validation", ("train",)),
    }


def audit_rounds(
    manifest: pd.DataFrame, splits: dict[int, pd.DataFrame], dataset: str, rule: str, **settings: Any
) -> dict[str, Any]:
    """Return a data set's whole audit: every round, and what a random split of the same sizes would share.

    Args:
        manifest: As `audit`.
        splits: By round.
        dataset: Its name.
        rule: The rule that made the splits.
        settings: test_fraction, validation_fraction and seed, as `split_round`.

    Raises:
        RuntimeError: If a grouped split shares anything at all: that would be a fault of this program.
    """
    groups = find_groups(manifest)
    rounds = {str(number): audit(manifest, split) for number, split in splits.items()}
    leaking = any(value for counts in rounds.values() for key, value in counts.items() if "shared" in key)
    if rule == "grouped" and leaking:
        raise RuntimeError(f"the grouped split of {dataset} shares prompts or images between its subsets: {rounds}")
    random = {}
    for number in splits:
        drawn = audit(manifest, split_round(manifest, groups, number, rule="random", **settings))
        random[str(number)] = {key: drawn[key] for key in ("shared_prompts", "shared_images")}
    sizes = groups.value_counts()
    return {
        "dataset": dataset,
        "rule": rule,
        "leaking": leaking,
        "groups": len(sizes),
        "largest_group": int(sizes.max()),
        "prompts": int(manifest["prompt_group"].map(normalise_prompt).nunique()),
        "identical_image_sets": int((manifest["sha256"].value_counts() > 1).sum()),
        "rounds": rounds,
        "random_rule_would_share": random,
    }
