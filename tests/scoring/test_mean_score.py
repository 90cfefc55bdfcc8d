"""The mean score as a metric of torchmetrics: by its contract, and equal to the scorer's own on PNGs of the pixels."""

import copy
import importlib.util
import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.decoding import ImageError
from pipeline.scoring.scorer import Scorer, ScoringError, load_scorer

if importlib.util.find_spec("torchmetrics") is None:
    pytest.skip("the extra `metrics` is not installed", allow_module_level=True)
from pipeline.scoring.mean_score import MeanScore

ROOT = Path(__file__).resolve().parents[2]
HANDCRAFTED = ROOT / "models" / "agiqa3k" / "handcrafted.safetensors"


@pytest.fixture(scope="module")
def quick() -> Scorer:
    return load_scorer(HANDCRAFTED)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Seven images of growing noise, (7, 3, 48, 40), uint8."""
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 255, 40).expand(3, 48, 40)
    noisy = [ramp + strength * torch.randn(3, 48, 40, generator=generator) for strength in range(0, 70, 10)]
    return torch.stack(noisy).clamp(0, 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def scores(quick: Scorer, images: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Return the scorer's own scores of the same pixels as PNGs, (7,)."""
    folder = tmp_path_factory.mktemp("pngs")
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    return quick.score([folder / f"{number}.png" for number in range(len(images))]).mos


def test_the_mean_is_that_of_the_scorer_on_pngs(quick: Scorer, images: torch.Tensor, scores: np.ndarray) -> None:
    assert np.ptp(scores) > 0.1
    for given in (images, images.float() / 255, images.double() / 255):
        metric = MeanScore(quick)
        metric.update(given[:3])
        metric.update(given[3:])
        assert metric.compute().item() == pytest.approx(scores.mean(), abs=1e-12)
        assert (metric.compute().dtype, metric.count.item()) == (torch.float64, 7)


def test_a_network_gives_its_own_scores_too(demo_scorer: Scorer, images: torch.Tensor) -> None:
    metric = MeanScore(demo_scorer)
    arrays = [image.permute(1, 2, 0).numpy() for image in images[:2]]
    assert metric(images[:2]).item() == pytest.approx(demo_scorer.score(arrays).mos.mean(), abs=1e-12)


def test_forward_gives_the_batch_and_keeps_the_whole(quick: Scorer, images: torch.Tensor, scores: np.ndarray) -> None:
    metric = MeanScore(quick)
    assert metric(images[:2]).item() == pytest.approx(scores[:2].mean(), abs=1e-12)
    assert metric(images[2:]).item() == pytest.approx(scores[2:].mean(), abs=1e-12)
    assert metric.compute().item() == pytest.approx(scores.mean(), abs=1e-12)  # and not the mean of the two means


def test_reset_forgets(quick: Scorer, images: torch.Tensor, scores: np.ndarray) -> None:
    metric = MeanScore(quick)
    metric.update(images)
    metric.reset()
    assert (metric.total.item(), metric.count.item()) == (0, 0)
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert metric.compute().isnan()
    metric.update(images[:1])
    assert metric.compute().item() == pytest.approx(scores[0], abs=1e-12)


def test_what_torchmetrics_asks_of_it_is_said(quick: Scorer) -> None:
    metric = MeanScore(quick)
    assert (metric.higher_is_better, metric.is_differentiable, metric.full_state_update) == (True, False, False)
    assert metric._reductions["total"] is metric._reductions["count"]
    assert list(metric.state_dict()) == []  # states of a metric are no weights, unless they are made persistent


@pytest.mark.parametrize("copied", [lambda metric: pickle.loads(pickle.dumps(metric)), copy.deepcopy, MeanScore.clone])
def test_a_copy_goes_on_alone(quick: Scorer, images: torch.Tensor, scores: np.ndarray, copied: object) -> None:
    metric = MeanScore(quick)
    metric.update(images[:3])
    twin = copied(metric)
    twin.update(images[3:])
    assert twin.compute().item() == pytest.approx(scores.mean(), abs=1e-12)
    assert metric.compute().item() == pytest.approx(scores[:3].mean(), abs=1e-12)


def test_a_network_can_be_pickled(demo_scorer: Scorer, images: torch.Tensor) -> None:
    metric = MeanScore(demo_scorer)
    metric.update(images[:1])
    twin = pickle.loads(pickle.dumps(metric))
    twin.update(images[1:2])
    metric.update(images[1:2])
    assert twin.compute().item() == metric.compute().item()


def test_states_merge(quick: Scorer, images: torch.Tensor, scores: np.ndarray) -> None:
    first, second = MeanScore(quick), MeanScore(quick)
    first.update(images[:2])
    second.update(images[2:])
    first.merge_state(second)
    assert first.compute().item() == pytest.approx(scores.mean(), abs=1e-12)


RANK = """
import json, sys, torch
from pipeline import MeanScore
place, rank = sys.argv[1], int(sys.argv[2])
torch.distributed.init_process_group("gloo", init_method=f"file://{place}/meeting", rank=rank, world_size=2)
metric = MeanScore(sys.argv[3])
images = torch.load(f"{place}/images.pt")
metric.update(images[:2] if rank == 0 else images[2:])  # parts of unequal size
print(json.dumps([metric.compute().item(), metric.count.item()]))
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_gather_exactly(images: torch.Tensor, scores: np.ndarray, tmp_path: Path) -> None:
    torch.save(images, tmp_path / "images.pt")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(tmp_path), str(rank), str(HANDCRAFTED)], cwd=ROOT, text=True,
            stdout=subprocess.PIPE,
        )
        for rank in range(2)
    ]  # fmt: skip
    told = [json.loads(process.communicate(timeout=300)[0].splitlines()[-1]) for process in processes]
    assert [mean for mean, _ in told] == [pytest.approx(scores.mean(), abs=1e-12)] * 2  # and no mean of means
    assert [count for _, count in told] == [2, 5]  # each process keeps its own


def test_a_place_will_do() -> None:
    assert MeanScore(str(HANDCRAFTED)).scorer.record["method"] == "handcrafted"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (torch.zeros(3, 20, 20), r"images have the shape \(N, 3, H, W\), and these \(3, 20, 20\)"),
        (torch.zeros(2, 20, 20, 3), r"and these \(2, 20, 20, 3\)"),
    ],
)
def test_other_shapes_are_refused(quick: Scorer, given: torch.Tensor, said: str) -> None:
    with pytest.raises(ScoringError, match=said):
        MeanScore(quick).update(given)


def test_values_are_looked_at(quick: Scorer) -> None:
    with pytest.raises(ImageError, match=r"image 1 \(from 0\).* holds floats outside 0\.\.1"):
        MeanScore(quick).update(torch.stack([torch.zeros(3, 20, 20), torch.full((3, 20, 20), 7.0)]))
    with pytest.raises(ImageError, match=r"holds int64: give uint8"):
        MeanScore(quick).update(torch.zeros(1, 3, 20, 20, dtype=torch.int64))


def test_a_score_that_is_no_mos_has_no_mean(quick: Scorer) -> None:
    with pytest.raises(ScoringError, match=r"was never calibrated, so a mean of its scores is no MOS"):
        MeanScore(replace(quick, calibration=None))


def test_without_torchmetrics_the_extra_is_named() -> None:
    code = "import sys; sys.modules['torchmetrics'] = None; from pipeline import MeanScore"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "MeanScore needs a package that is missing (torchmetrics): pip install torchmetrics" in done.stderr
