"""Runs on disk: what a state is keyed by, and how a killed computation goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.costs import Spent
from pipeline.study import runs


def test_used_params_are_flat() -> None:
    nested = {"train": {"lr": 1, "deep": {"x": 2}}, "split": {"rule": "grouped", "seed": 0}}
    assert runs.used_params(nested, ["train", "split.rule"]) == {
        "train.lr": 1,
        "train.deep.x": 2,
        "split.rule": "grouped",
    }


def finish(folder: Path, value: str) -> None:
    (folder / "results").mkdir()
    (folder / "results" / "value").write_text(value)


def test_what_a_killed_computation_had_is_there_again(in_tmp: Path) -> None:
    out = in_tmp / "out"

    def broken() -> None:
        with runs.resumable(in_tmp, out, "key") as folder:
            (folder / "state").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert not out.exists()
    with runs.resumable(in_tmp, out, "key") as folder:
        assert (folder / "state").read_text() == "half"
        finish(folder, "whole")
    assert (out / "value").read_text() == "whole"


def test_results_are_kept_until_dvc_has_taken_them_up_and_not_longer(in_tmp: Path) -> None:
    out = Path("runs/demo/dcmpln/round-0/train")
    with runs.resumable(in_tmp, out, "key") as folder:
        finish(folder, "1")
    with runs.resumable(in_tmp, out, "key") as folder:  # killed before DVC wrote its lock: nothing is computed anew
        assert (folder / "results").is_dir()
    (in_tmp / "dvc.lock").write_text(f"outs:\n- path: {out}\n  hash: md5\n  md5: abc.dir\n")
    with runs.resumable(in_tmp, out, "key") as folder:  # forced again after it was taken up: begins anew
        assert not (folder / "results").exists()
        finish(folder, "2")


def test_a_computation_without_results_is_an_error(in_tmp: Path) -> None:
    with pytest.raises(RuntimeError, match="holds no results for out"), runs.resumable(in_tmp, Path("out"), "key"):
        pass


def test_a_second_process_waits_for_the_first(in_tmp: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from pipeline.study import runs\n"
        "with runs.resumable(Path(sys.argv[1]), Path(sys.argv[1]) / 'out', 'key') as folder:\n"
        "    seen = (folder / 'results').is_dir(); print(seen, flush=True)\n"
        "    if not seen:\n"
        "        time.sleep(1); (folder / 'results').mkdir(); (folder / 'results' / 'v').write_text('1')\n"
    )
    root = Path(__file__).resolve().parents[2]
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(in_tmp)], cwd=root, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert sorted(process.communicate(timeout=60)[0].strip() for process in both) == ["False", "True"]


def test_time_counts_from_the_first_start(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"started": "2026-01-01T00:00:00+00:00", "run_id": "x"}))
    run = runs.begin(tmp_path, {"device": "cpu"}, "demo")
    assert (run["run_id"], run["device"], run["experiment"]) == ("x", "cpu", "demo")
    ended = runs.end(run, Spent(4.0, 7.0, False))
    assert ended["seconds"] > 1e6
    assert ended["cost"] == {"seconds": 4.0, "cpu_seconds": 7.0, "under_load": False}  # no pause is in it


def test_a_lock_of_dvcs_does_not_make_the_code_dirty(in_tmp: Path) -> None:
    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(["git", *identity, *words], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    Path("params.yaml").write_text("one: 1\n")
    git("add", "params.yaml")
    git("commit", "-qm", "first")
    Path("dvc.lock").write_text("schema: '2.0'\n")
    assert (runs.provenance()["git_commit"], runs.provenance()["git_dirty"]) == (git("rev-parse", "HEAD"), False)
    Path("params.yaml").write_text("one: 2\n")
    assert runs.provenance()["git_dirty"] is True


def test_outside_git_nothing_is_said_of_the_code(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(in_tmp.parent))
    assert (runs.provenance()["git_commit"], runs.provenance()["git_dirty"]) == (None, None)
