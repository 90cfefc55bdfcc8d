"""What tells two results apart, in a cache filled by hand. Remotes and clones are read in test_assembly."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.files import file_md5
from pipeline.study.runcache import Result, changed_inputs, differences

EVALUATE, FEATURES = "runs/demo/dcmpln/round-0/evaluate", "data/feature-times/demo.json"


@pytest.fixture
def repo(tmp_path: Path) -> SimpleNamespace:
    """Return what of a repository of DVC's finds a file of its cache."""
    return SimpleNamespace(cache=SimpleNamespace(local=SimpleNamespace(oid_to_path=lambda md5: str(tmp_path / md5))))


def result(repo: SimpleNamespace, out: str, files: dict[str, object] | object) -> Result:
    """Put an output's files into the cache, and return the result."""

    def put(value: object, suffix: str = "") -> str:
        place = Path(repo.cache.local.oid_to_path("new"))
        place.write_text(json.dumps(value))
        return place.rename(place.with_name(file_md5(place) + suffix)).name

    if isinstance(files, dict):
        files = [{"md5": put(value), "relpath": name} for name, value in files.items()]
        md5 = put(files, ".dir")
    else:
        md5 = put(files)
    return Result(md5 * 2, {"cmd": "x", "outs": [{"path": out, "md5": md5}]}, ("store",))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, []),
        ({"run.json": 9, "timing.csv": 9}, []),
        ({"record.json": 9}, ["record.json"]),
        ({"metrics.json": {"test": 0.5, "cost": 9}}, []),
        ({"metrics.json": {"test": 0.6, "cost": 1}}, ["metrics.json"]),
        ({"metrics.json": {"test": 0.5, "cost": 9}, "gallery/a.png": 1}, ["gallery/a.png"]),
        ({"run.json": None}, ["run.json"]),
        ({"record.json": None, "checkpoints/epoch-001.safetensors": 9}, ["checkpoints/epoch-001.safetensors",
                                                                        "record.json"]),
    ],
)  # fmt: skip
def test_results_differ_in_what_is_no_time(repo: SimpleNamespace, change: dict[str, object], told: list[str]) -> None:
    files = {"run.json": 1, "timing.csv": 1, "record.json": 1, "checkpoints/epoch-001.safetensors": 1,
             "metrics.json": {"test": 0.5, "cost": 1}}  # fmt: skip
    other = {name: value for name, value in (files | change).items() if value is not None}
    one, two = result(repo, EVALUATE, files), result(repo, EVALUATE, other)
    assert differences(repo, one, two) == [f"{EVALUATE}/{name}" for name in told]
    assert differences(repo, two, one) == [f"{EVALUATE}/{name}" for name in told]


def test_the_times_of_features_are_times_and_features_are_not(repo: SimpleNamespace) -> None:
    assert differences(repo, result(repo, FEATURES, 1.5), result(repo, FEATURES, 2.5)) == []
    path = "data/features/demo.npz"
    assert differences(repo, result(repo, path, 1.5), result(repo, path, 2.5)) == [path]


def test_inputs_are_told_by_file_and_param() -> None:
    wanted = {
        "cmd": "x",
        "deps": [{"path": "a", "md5": "1"}, {"path": "b", "md5": "2"}],
        "params": {"params.yaml": {"train.epochs": 3, "model": {"depth": 4}}},
    }
    assert changed_inputs(wanted, wanted) == []
    found = {"cmd": "x", "deps": [{"path": "a", "md5": "9"}, {"path": "c", "md5": "2"}],
             "params": {"params.yaml": {"train.epochs": 4, "model": {"depth": 4}}}}  # fmt: skip
    assert changed_inputs(wanted, found) == ["a", "b", "c", "params.yaml:train.epochs"]
    assert changed_inputs(wanted, {"cmd": "x"}) == ["a", "b", "params.yaml:model", "params.yaml:train.epochs"]
