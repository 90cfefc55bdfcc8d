"""What no baseline reads is not computed, and what one reads does not depend on the others."""

import io
from pathlib import Path

import numpy as np
import pytest
from made_parts import write_params

from pipeline.params import load_params
from pipeline.study import features
from stages import download, preprocess

COLUMNS = {
    "tower": {"image_features", "image_features_deviation", "clip_iqa", "clip_iqa_text_features"},
    "statistics": {"handcrafted", "handcrafted_names"},
}
ALWAYS = {"image_id", "backbone", "windows"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path) -> Path:
    folder = tmp_path_factory.mktemp("features")
    write_params(folder, tiny_config)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        download.main(["--dataset", "demo"])
        preprocess.main(["--dataset", "demo"])
    return folder


def test_only_the_passes_that_a_baseline_reads_are_made(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    params = load_params("params.yaml")
    found = {}
    sets = (["clip_iqa", "linear_probe", "handcrafted"], ["handcrafted"], ["linear_probe", "pyiqa_piqe"], [])
    for baselines in sets:  # a metric of pyiqa's reads the images themselves
        study = params.study.model_copy(update={"baselines": baselines})
        content, times = features.compute(params.model_copy(update={"study": study}), "demo")
        passes = set()
        if "handcrafted" in baselines:
            passes.add("statistics")
        if {"clip_iqa", "linear_probe"} & {*baselines}:
            passes.add("tower")
        assert {*times} == passes
        with np.load(io.BytesIO(content)) as archive:
            found[tuple(baselines)] = {name: archive[name] for name in archive}
        assert {*found[tuple(baselines)]} == ALWAYS.union(*(COLUMNS[name] for name in passes))
    whole = found["clip_iqa", "linear_probe", "handcrafted"]
    for columns in found.values():
        for name, values in columns.items():
            np.testing.assert_array_equal(values, whole[name])
