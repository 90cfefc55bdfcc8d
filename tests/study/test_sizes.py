"""How many images there are and how large, wherever they lie: held against what was put there."""

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_parts import RULE
from PIL import Image

from pipeline.model.windows import window_origins
from pipeline.params import Params, load_params
from pipeline.study.sizes import PUBLISHED, Size, size_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def params(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.delenv("AGIQA_DATA", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return load_params(ROOT / "params" / "demo.yaml")


def with_source(params: Params, dataset: str, source: str) -> Params:
    changed = params.datasets[dataset].model_copy(update={"source": source})
    return params.model_copy(update={"datasets": {**params.datasets, dataset: changed}})


def draw(folder: Path) -> None:
    for number, (width, height) in enumerate([(40, 60), (40, 60), (64, 32), (40, 60)]):
        path = folder / "img" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((height, width, 3), number, dtype=np.uint8)).save(path)
    (folder / "img" / ".hidden.png").touch()
    (folder / "img" / "broken.jpg").write_text("nothing")
    (folder / "labels.csv").touch()


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_and_a_zip_are_looked_into(params: Params, packed: bool) -> None:
    draw(Path("photos"))
    if packed:
        with zipfile.ZipFile("photos.zip", "w") as archive:
            for path in Path("photos").rglob("*"):
                archive.write(path)
    size = size_of(with_source(params, "agiqa3k", "photos.zip" if packed else "photos"), "agiqa3k")
    assert (size.images, size.sides) == (5, {(60, 40): 0.75, (32, 64): 0.25})
    assert size.sample == Path("photos/img/0.png").read_bytes()
    assert size.pixels == 5 * 3 * (0.75 * 60 * 40 + 0.25 * 32 * 64)
    expected = 0.75 * len(window_origins(60, 40, RULE)) + 0.25 * len(window_origins(32, 64, RULE))
    assert size.windows(RULE) == expected == 3.5
    assert size.windows(RULE, 3) == 0.75 * 3 + 0.25 * 2


def test_what_is_prepared_is_counted_and_what_is_nowhere_is_as_published(params: Params) -> None:
    assert (size := size_of(params, "demo")).images == 960
    assert size.sides == {(160, 160): 1.0}
    assert (size_of(params, "agiqa3k").images, size_of(params, "agiqa3k").known) == (
        PUBLISHED["agiqa3k"][0], "to be downloaded; as published",
    )  # fmt: skip
    folder = Path("data/prepared/agiqa3k")
    folder.mkdir(parents=True)
    pd.DataFrame({"height": [5, 5], "width": [6, 7]}).to_parquet(folder / "manifest.parquet")
    assert size_of(params, "agiqa3k").sides == {(5, 6): 0.5, (5, 7): 0.5}


def test_subsets_are_those_of_a_split(params: Params) -> None:
    parts = Size(1000, {(1, 1): 1.0}, 0, None, "").subsets(params)
    assert parts == {"train": 720, "validation": 80, "test": 200}
