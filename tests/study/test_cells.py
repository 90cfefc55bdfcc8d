"""The list of cells against DVC's own reading of dvc.yaml, and how it is dealt out."""

import shutil
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from pipeline.cli import main
from pipeline.params import load_params
from pipeline.study.cells import cells, share

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning:dvc")  # DVC's own
SHARED = {"code", "download", "preprocess", "split", "features", "index", "report", "mirror"}


@pytest.fixture
def study(in_tmp: Path) -> Path:
    """Return the folder of a study of two data sets, one of its variants audited, which is the working folder."""
    params = yaml.safe_load((ROOT / "params/demo.yaml").read_text())
    params["study"] |= {"datasets": ["demo", "agiqa3k"], "variants": ["dcmpln", "no_mpa"], "rounds": [0, 3],
                        "baselines": ["clip_iqa"], "audit": ["dcmpln"]}  # fmt: skip
    (in_tmp / "params.yaml").write_text(yaml.safe_dump(params))
    shutil.copy(ROOT / "dvc.yaml", in_tmp)
    return in_tmp


def test_cells_hold_every_stage_but_the_shared_ones_once(study: Path) -> None:
    Repo.init(str(study), no_scm=True)
    with Repo(str(study)) as repo:
        stages = {stage.addressing for stage in repo.index.stages if stage.name.split("@")[0] not in SHARED}
    found = [stage for cell in cells(load_params("params.yaml").study) for stage in cell.stages]
    assert len(found) == len(set(found))
    assert set(found) == stages


def test_no_cell_needs_another(study: Path) -> None:
    Repo.init(str(study), no_scm=True)
    found = cells(load_params("params.yaml").study)
    cell_of = {stage: cell.name for cell in found for stage in cell.stages}
    with Repo(str(study)) as repo:
        for one, needed in repo.index.graph.edges:
            if one.addressing in cell_of and needed.addressing in cell_of:
                assert cell_of[one.addressing] == cell_of[needed.addressing]
                order = found[[cell.name for cell in found].index(cell_of[one.addressing])].stages
                assert order.index(needed.addressing) < order.index(one.addressing)


@pytest.mark.parametrize("workers", [1, 3, 10, 12])
def test_shares_hold_every_cell_once(study: Path, workers: int) -> None:
    found = cells(load_params("params.yaml").study)
    dealt = [share(found, worker, workers) for worker in range(workers)]
    assert sorted(cell for part in dealt for cell in part) == sorted(found)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_the_command_lists_cells_and_gives_stages_to_dvc(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cells"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 10
    assert table[0].split() == [
        "0", "demo/dcmpln/round-0", "train@demo-dcmpln-0", "evaluate@demo-dcmpln-0", "train_random@demo-dcmpln-0",
        "audit@demo-dcmpln-0",
    ]  # fmt: skip
    assert table[9].split() == ["9", "agiqa3k/clip_iqa", "baseline@agiqa3k-clip_iqa"]
    assert main(["cells", "3", "8"]) == 0
    assert capsys.readouterr().out == "train@demo-no_mpa-3 evaluate@demo-no_mpa-3\nbaseline@demo-clip_iqa\n"
    assert main(["cells", "--share", "1/4"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "train@demo-dcmpln-3", "train@agiqa3k-dcmpln-3", "baseline@agiqa3k-clip_iqa",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["10"], "there is no cell 10: the study has 10, 0 to 9"),
        (["--share", "4/4"], "share 4/4: of 4 workers the first is 0 and the last 3"),
        (["--params", "other.yaml"], "other.yaml does not exist: go to the folder of a study"),
    ],
)
def test_a_mistake_is_told_in_a_line(
    study: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cells", *words]) == 2
    assert capsys.readouterr().err == f"agiqa: error: {message}\n"


def test_a_share_that_is_none_is_told_in_a_line(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as status:
        main(["cells", "--share", "half"])
    assert status.value.code == 2
    assert "'half' is no share such as 0/8" in capsys.readouterr().err
