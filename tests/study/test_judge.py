"""A finished training judges images as the plain model of its checkpoint does."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from made_parts import SAID, bright_images, model_of, write_params, write_prepared

from pipeline.layout import checkpoint_name
from pipeline.model.backbone import Backbone
from pipeline.model.checkpoint import CheckpointError, save_checkpoint
from pipeline.model.dcmpln import DCMPLN
from pipeline.model.folded import fold
from pipeline.model.windows import WindowRule, cut, normalise, spread, window_origins
from pipeline.params import load_params
from pipeline.study.build import make_window_rule
from pipeline.study.judge import Judge

RECORD = {"dataset": "demo", "method": "dcmpln", "round": 0, "selected_epoch": 2}


@pytest.fixture
def judging(in_tmp: Path, tiny_config: Path, tiny_backbone: Backbone) -> Iterator[tuple[Judge, list[DCMPLN]]]:
    """Return the judge of a training of two epochs, and the model of each."""
    write_prepared(in_tmp)
    write_params(in_tmp, tiny_config, backbone__seed=1)
    params, folder = load_params(), in_tmp / "runs/demo/dcmpln/round-0/train"
    rule = make_window_rule(params, tiny_backbone)
    models = [model_of(tiny_backbone), model_of(tiny_backbone)]
    with torch.no_grad():
        models[1].main_prompts.visual.add_(0.5)
    for epoch, model in enumerate(models, 1):
        save_checkpoint(
            folder / "checkpoints" / checkpoint_name(epoch), fold(model), {"windows": rule.record(), **SAID}
        )
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield Judge.of(params, RECORD, folder), models
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def plain(model: DCMPLN, pixels: np.ndarray, rule: WindowRule, count: int | None = None) -> np.ndarray:
    """Return the whole model's score of each window: both branches and the plain tower."""
    origins = window_origins(*pixels.shape[:2], rule)
    origins = origins if count is None else spread(origins, count)
    with torch.no_grad():
        return model(normalise(cut(pixels, origins, rule.size), rule))[0].double().numpy()


def test_scores_are_the_plain_models(judging: tuple[Judge, list[DCMPLN]]) -> None:
    judge, models = judging
    rows, images = np.array([3, 17, 8]), bright_images()
    for epoch, windows, model in ((None, None, models[1]), (1, None, models[0]), (2, 2, models[1])):
        found = judge.scores("demo", rows, epoch=epoch, windows=windows)
        expected = [plain(model, images[row], judge.rule, windows).mean() for row in rows]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(judge.scores("demo", rows)) > 1e-3


def test_images_and_maps_are_those_of_its_own_data_set(judging: tuple[Judge, list[DCMPLN]]) -> None:
    judge, models = judging
    pixels = judge.images()("05.png")
    np.testing.assert_array_equal(pixels, bright_images()[5])
    found = judge.quality_maps()(pixels)
    assert found.shape == (40, 40)
    first = plain(models[1], pixels, judge.rule)[0]
    assert found[0, 0] == pytest.approx(first, abs=1e-5)  # the corner lies in the first window alone


def test_a_checkpoint_of_other_windows_is_refused(judging: tuple[Judge, list[DCMPLN]], tiny_config: Path) -> None:
    judge, _ = judging
    write_params(Path(), tiny_config, backbone__seed=1, images__stride=8)
    other = Judge.of(load_params(), RECORD, judge.train_folder)
    with pytest.raises(CheckpointError, match="images stride is 8, and it was trained with 16"):
        other.scorer()
