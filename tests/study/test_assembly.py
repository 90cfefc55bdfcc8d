"""Gathering from real DVC remotes and clones: whole, twice, with cells missing, contradicted, killed half way."""

import shutil
from pathlib import Path

import made_cells
import pytest
import yaml

from pipeline.cli import main

pytestmark = [
    pytest.mark.slow,  # DVC runs many times in each
    pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning:dvc"),  # DVC's own
]
TRAINED = ("code", "download", "preprocess", "split", "features", "index", "train", "evaluate", "baseline")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path) -> Path:
    """Return the folder of a study that two workers have run and pushed: origin, store, and their clones.

    `one` has made demo/dcmpln/round-0, `two` the two other cells.
    """
    folder = tmp_path_factory.mktemp("shared")
    origin = made_cells.make_origin(folder, tiny_config)
    made_cells.work(made_cells.clone(origin, "two"), "evaluate@demo-dcmpln-1", "baseline@demo-handcrafted")
    made_cells.work(made_cells.clone(origin, "one"), "evaluate@demo-dcmpln-0")
    return folder


@pytest.fixture
def shared(prepared: Path, tmp_path: Path) -> Path:
    """Return a copy of `prepared` that a test may change."""
    folder = tmp_path / "shared"
    shutil.copytree(prepared, folder, symlinks=True)
    for name in ("origin", "one", "two"):
        config = folder / name / ".dvc/config"
        config.write_text(config.read_text().replace(str(prepared), str(folder)))
    return folder


def clone(shared: Path, name: str) -> Path:
    """Return a fresh clone of a test's study, which asks the test's own store."""
    place = made_cells.clone(shared / "origin", name)
    shutil.copy(shared / "origin/.dvc/config", place / ".dvc/config")
    return place


def push(place: Path) -> None:
    made_cells.dvc(place, "push", "--quiet", "--run-cache")


def entries(place: Path, *commands: str) -> list[Path]:
    """Return the files of a run cache that tell of these commands."""
    found = [path for path in (place / "runs").rglob("*") if path.is_file()]
    return [path for path in found if any(f"stages.{command}" in path.read_text() for command in commands)]


def forget(shared: Path) -> None:
    """Leave the store as if worker one had pushed nothing."""
    commands = ("train --dataset demo --variant dcmpln --round 0", "evaluate --dataset demo --method dcmpln --round 0")
    for entry in entries(shared / "store", *commands):
        for out in yaml.safe_load(entry.read_text())["outs"]:
            listing = stored(shared, out["md5"])
            for file in yaml.safe_load(listing.read_text()):
                stored(shared, file["md5"]).unlink()
            listing.unlink()
        entry.unlink()


def stored(shared: Path, md5: str) -> Path:
    """Return a file of the store."""
    return shared / "store/files/md5" / md5[:2] / md5[2:]


def gather(
    place: Path, patch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    """Gather in a clone; return the status and what was said on both streams."""
    patch.chdir(place)
    for key, value in made_cells.environment(place).items():
        patch.setenv(key, value)
    capfd.readouterr()
    status = main(["gather", *words])
    return status, *capfd.readouterr()


def locked(place: Path) -> dict[str, object]:
    """Return what dvc.lock says of each stage."""
    return yaml.safe_load((place / "dvc.lock").read_text())["stages"]


def ran(place: Path) -> list[str]:
    """Return the stages with work in them that have run in a clone."""
    return [line for line in made_cells.journal(place) if line.split()[0] in TRAINED]


def test_what_workers_pushed_becomes_one_study_and_a_second_time_changes_nothing(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    place = clone(shared, "whole")
    status, out, err = gather(place, monkeypatch, capfd)
    assert (status, out.count("missing"), ran(place)) == (0, 0, [])
    assert "restored (" in err
    assert "the study is whole" in err
    assert [line.split()[0] for line in made_cells.journal(place)] == ["report", "mirror"]
    for number, worker in ((0, "one"), (1, "two")):
        run = f"runs/demo/dcmpln/round-{number}/train/run.json"
        assert (place / run).read_text() == (shared / worker / run).read_text()
    for worker in ("one", "two"):
        assert locked(shared / worker).items() <= locked(place).items()
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file() and ".dvc/" not in str(path)}
    status, out, err = gather(place, monkeypatch, capfd)
    assert (status, ran(place)) == (0, [])
    assert "0 stages restored, 11 were here; nothing ran" in err
    assert len(made_cells.journal(place)) == 2
    assert before == {path: path.read_bytes() for path in before}
    made_cells.dvc(place, "repro", "--quiet")
    assert len(made_cells.journal(place)) == 2  # to plain DVC, too, all is up to date


def test_clones_that_pushed_nothing_are_sources_too(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(shared / "store")
    place = clone(shared, "whole")
    status, out, err = gather(place, monkeypatch, capfd, str(shared / "one"), str(shared / "two"))
    assert (status, out, ran(place)) == (0, "", [])
    assert f"{shared / 'one'}" in err
    assert (shared / "one/dvc.lock").is_file()


def test_a_missing_cell_is_named_and_not_trained(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    forget(shared)
    place = clone(shared, "part")
    status, out, err = gather(place, monkeypatch, capfd)
    assert status == 1
    assert out.splitlines() == [
        "missing      train@demo-dcmpln-0 (demo/dcmpln/round-0): nobody has made it",
        "waiting      evaluate@demo-dcmpln-0 (demo/dcmpln/round-0): needs train@demo-dcmpln-0",
    ]
    assert "not whole, and nothing was trained for what it lacks: demo/dcmpln/round-0\n" in err
    assert made_cells.journal(place) == []
    assert (place / "runs/demo/dcmpln/round-1/evaluate/metrics.json").is_file()
    push(shared / "one")  # the worker ends after all
    assert gather(place, monkeypatch, capfd)[0] == 0
    assert ran(place) == []


def test_a_cell_made_of_other_inputs_is_told_by_them(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    place = clone(shared, "part")
    code = place / "stages/train.py"
    code.write_text(code.read_text() + "# edited\n")
    made_cells.dvc(place, "repro", "--quiet", "code")
    status, out, _ = gather(place, monkeypatch, capfd)
    assert status == 1
    lines = [line for line in out.splitlines() if line.startswith("missing")]
    assert sorted(lines) == [
        f"missing      train@demo-dcmpln-{number} (demo/dcmpln/round-{number}): nobody has made it of these inputs; "
        "that of store is of another data/code/train.json"
        for number in (0, 1)
    ]
    assert ran(place) == ["code None None None"]


def test_contradicting_results_are_refused_by_name_until_one_is_taken(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    other = clone(shared, "other")
    # It never asks the remote, so it trains once more, and its machine rounds otherwise.
    made_cells.dvc(other, "pull", "--quiet", "--allow-missing")
    made_cells.dvc(other, "repro", "--quiet", "train@demo-dcmpln-0", skew="by a bit")
    push(other)
    place = clone(shared, "whole")
    status, out, _ = gather(place, monkeypatch, capfd)
    assert status == 1
    first, second = out.splitlines()
    assert first.startswith(
        "contradicted train@demo-dcmpln-0 (demo/dcmpln/round-0): results of the same inputs differ in "
        "runs/demo/dcmpln/round-0/train/record.json: "
    )
    assert second.endswith("evaluate@demo-dcmpln-0 (demo/dcmpln/round-0): needs train@demo-dcmpln-0")
    assert made_cells.journal(place) == []
    assert not (place / "runs/demo/dcmpln/round-0").exists()
    hashes = [part.split()[-3] for part in first.split(". Look")[0].split("; ")]
    assert len(hashes) == 2
    assert all(len(name) == 8 for name in hashes)
    # Here, too, either is as good as the other until somebody says which: the order of sources decides nothing.
    assert gather(place, monkeypatch, capfd, str(other), "store")[0] == 1
    kept = [name for name in hashes if _skew_of(shared, name) == ""]
    status, out, _ = gather(place, monkeypatch, capfd, "--take", f"train@demo-dcmpln-0={kept[0]}")
    assert (status, out, ran(place)) == (0, "", [])
    record = (place / "runs/demo/dcmpln/round-0/train/record.json").read_text()
    assert record == (shared / "one/runs/demo/dcmpln/round-0/train/record.json").read_text()


def _skew_of(shared: Path, name: str) -> str:
    """Return which record a result holds, read from the store's files alone."""
    entry = next(path for path in (shared / "store/runs").rglob(f"{name}*"))
    md5 = yaml.safe_load(entry.read_text())["outs"][0]["md5"]
    listed = yaml.safe_load(stored(shared, md5).read_text())
    record = next(file["md5"] for file in listed if file["relpath"] == "record.json")
    return yaml.safe_load(stored(shared, record).read_text())["skew"]


def test_results_that_differ_in_times_alone_agree(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    other = clone(shared, "other")
    made_cells.dvc(other, "pull", "--quiet", "--allow-missing")
    made_cells.dvc(other, "repro", "--quiet", "evaluate@demo-dcmpln-0")
    push(other)
    locks = []
    for name, sources in (("a", ["store", str(other)]), ("b", [str(other), "store"])):
        place = clone(shared, name)
        status, out, err = gather(place, monkeypatch, capfd, *sources)
        assert (status, out) == (0, "")
        assert "train@demo-dcmpln-0: several results, which differ in times alone; kept " in err
        locks.append(locked(place)["train@demo-dcmpln-0"])
    assert locks[0] == locks[1]
    # Who has one of them already keeps that; and what it has made twice is its own affair.
    for skew in ("by a bit", ""):
        made_cells.dvc(other, "repro", "--quiet", "--force", "--single-item", "train@demo-dcmpln-0", skew=skew)
    before = locked(other)
    assert gather(other, monkeypatch, capfd)[0] == 0
    assert before.items() <= locked(other).items()


def test_a_result_whose_files_never_arrived_is_missing(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """DVC pushes the run cache first: a worker killed then leaves an entry without its files; another half a file."""
    forget(shared)
    shutil.copytree(shared / "one/.dvc/cache/runs", shared / "store/runs", dirs_exist_ok=True)
    torn = shared / "store/runs/ab" / ("ab" + "0" * 62)
    torn.mkdir(parents=True)
    (torn / ("1" * 64)).write_text("cmd: python -m stages.tr")
    place = clone(shared, "part")
    status, out, _ = gather(place, monkeypatch, capfd)
    assert status == 1
    assert out.splitlines()[0] == (
        "missing      train@demo-dcmpln-0 (demo/dcmpln/round-0): store names a result whose files are nowhere: let its "
        "worker do `dvc push --run-cache` again"
    )
    push(shared / "one")
    assert gather(place, monkeypatch, capfd)[0] == 0


def test_files_that_no_cache_has_are_not_overwritten(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    place = clone(shared, "whole")
    own = place / "runs/demo/dcmpln/round-0/train/record.json"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    status, _, err = gather(place, monkeypatch, capfd)
    assert status == 2
    assert "runs/demo/dcmpln/round-0/train" in err
    assert own.read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere is neither a remote nor the folder of a clone; the remotes are store"),
        (["--take", "train@demo-dcmpln-0"], "--take train@demo-dcmpln-0: give a stage and the beginning of a result"),
        (["--take", "train@demo-no-9=ab"], "--take train@demo-no-9: the study has no such stage; `agiqa cells` lists"),
        (["--take", "code=zz"], "--take code=zz: that names 0 of its results; they are "),
    ],
)
def test_a_mistake_is_told_in_a_line(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    status, out, err = gather(prepared / "origin", monkeypatch, capfd, *words)
    assert (status, out) == (2, "")
    assert f"agiqa: error: {message}" in err
    assert len(err.splitlines()) == 1


def test_outside_of_a_study_nothing_is_gathered(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gather"]) == 2
    assert "holds no dvc.yaml and params.yaml" in capsys.readouterr().err


def test_the_command_can_be_imported_from_its_room() -> None:
    from pipeline.study.assembly import LAST, Assembly

    assert Assembly().complete
    assert LAST == ("report", "mirror")
