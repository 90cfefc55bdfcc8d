"""From raw scores to MOS: the map against scipy's own fit, the bands against order statistics and new images."""

import numpy as np
import pytest
from scipy.optimize import curve_fit
from scipy.special import expit

from pipeline.calibration import Calibration, calibrate, told_mos
from pipeline.errors import AgiqaError

NO_BANDS = (None,) * 50


def drawn(
    rng: np.random.Generator, groups: int, images: int, truth: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return raw scores, MOS in 0..5 and groups of images whose opinions and errors are alike within a prompt."""
    group = np.repeat(np.arange(groups), images)

    def both() -> np.ndarray:
        return 0.6 * rng.normal(size=groups)[group] + 0.8 * rng.normal(size=len(group))

    quality = both()
    return 0.55 + 0.02 * (truth * quality + np.sqrt(1 - truth**2) * both()), 5 * expit(quality), group


def test_the_map_is_scipys_least_squares_fit() -> None:
    raw, mos, groups = drawn(np.random.default_rng(0), 40, 3, 0.8)
    found = calibrate(raw, mos, groups, 0, 5)
    (offset, slope), _ = curve_fit(lambda s, a, b: 5 * expit(a + b * (s - 0.55)), raw, mos, p0=[0, 10])
    new = np.linspace(0.4, 0.7, 50)
    np.testing.assert_allclose(found.to_mos(new), 5 * expit(offset + slope * (new - 0.55)), atol=1e-4)
    assert (found.images, found.groups) == (120, 40)


def test_a_map_that_is_there_is_found() -> None:
    """1 + 4 / (1 + exp(-(-2 + 5 s))): at s = .4 the middle of the scale, 3."""
    raw = np.linspace(0, 1, 30)
    found = calibrate(raw, 1 + 4 * expit(-2 + 5 * raw), np.arange(30), 1, 5)
    assert (found.offset, found.slope) == pytest.approx((-2, 5), rel=1e-4)
    assert found.to_mos(np.array([0.4]))[0] == pytest.approx(3, abs=1e-5)


@pytest.mark.parametrize("raw", [[0.9, 0.5, 0.1], [0.3, 0.3, 0.3]])
def test_scores_that_tell_nothing_get_the_mean(raw: list[float]) -> None:
    found = calibrate(np.array(raw), np.array([1.0, 2.0, 4.5]), np.arange(3), 0, 5)
    assert found.slope == 0
    np.testing.assert_allclose(found.to_mos(np.array([-9.0, 0.5, 9.0])), 2.5)


def test_few_images_make_no_step_and_nothing_leaves_the_scale() -> None:
    """Bad and good in two clumps would be parted by a step, if the map might be as steep as it likes."""
    raw = np.array([0.1, 0.101, 0.102, 0.2, 0.201, 0.202])
    found = calibrate(raw, np.array([0, 0, 0, 5, 5, 5.0]), np.arange(6), 0, 5)
    between = found.to_mos(np.linspace(0.1, 0.2, 9))
    assert (np.diff(between) > 0.05).all()
    far = found.to_mos(np.array([-100.0, 100.0]))
    assert 0 <= far[0] < far[1] <= 5


def test_half_widths_are_order_statistics_of_what_was_left_out() -> None:
    """Of 19 images of one prompt each the 90 % band is the ceil(.9 x 20) = 18th residual, the 95 % band the last."""
    rng = np.random.default_rng(1)
    raw, mos, groups = drawn(rng, 19, 1, 0.6)
    found = calibrate(raw, mos, groups, 0, 5)
    residuals = []
    for left_out in range(19):
        kept = np.arange(19) != left_out
        other = calibrate(raw[kept], mos[kept], groups[kept], 0, 5)
        residuals.append(abs(float(other.to_mos(raw[left_out])) - mos[left_out]))
    residuals.sort()
    halves = dict(zip(range(50, 100), found.half_widths, strict=True))
    assert halves[90] == pytest.approx(residuals[17], abs=1e-6)
    assert halves[95] == pytest.approx(residuals[18], abs=1e-6)
    assert halves[96] is None
    assert halves[50] == pytest.approx(residuals[9], abs=1e-6)


@pytest.mark.parametrize(
    ("groups", "images", "truth"), [(30, 1, 0.8), (15, 2, 0.5), (10, 5, 0.8), (24, 10, 0.7), (60, 5, 0.3)]
)
def test_bands_hold_what_they_promise(groups: int, images: int, truth: float) -> None:
    """Over many draws, on new images of new prompts."""
    rng = np.random.default_rng(groups)
    held = []
    for _ in range(60):
        found = calibrate(*drawn(rng, groups, images, truth), 0, 5)
        raw, mos, _ = drawn(rng, 100, 3, truth)
        low, high = found.band(found.to_mos(raw))
        held.append(np.mean((low <= mos) & (mos <= high)))
    assert 0.88 <= np.mean(held) <= 0.94


def test_the_error_is_near_the_best_that_new_images_allow() -> None:
    rng, ratios = np.random.default_rng(5), []
    for _ in range(30):
        found = calibrate(*drawn(rng, 24, 10, 0.8), 0, 5)
        raw, mos, _ = drawn(rng, 300, 1, 0.8)
        best, _ = curve_fit(lambda s, a, b: 5 * expit(a + b * (s - 0.55)), raw, mos, p0=[0, 10])
        fitted = 5 * expit(best[0] + best[1] * (raw - 0.55))
        ratios.append(np.sqrt(np.mean((found.to_mos(raw) - mos) ** 2) / np.mean((fitted - mos) ** 2)))
    assert np.mean(ratios) < 1.03


def test_a_band_is_cut_to_the_scale_and_knows_its_levels() -> None:
    halves = tuple(0.01 * percent for percent in range(50, 100))
    found = Calibration(0, 1, 1, 5, halves, 10, 10)
    low, high = found.band(np.array([1.2, 3.0, 4.9]))
    np.testing.assert_allclose(low, [1.0, 2.1, 4.0])
    np.testing.assert_allclose(high, [2.1, 3.9, 5.0])
    np.testing.assert_allclose(found.band(np.array([3.0]), 50), [[2.5], [3.5]])
    low, high = Calibration(0, 1, 1, 5, NO_BANDS, 3, 3).band(np.array([3.0]))
    assert (low[0], high[0]) == (1, 5)  # nobody vouches for less
    for level in (49, 100, 90.5):
        with pytest.raises(AgiqaError, match=r"whole percents from 50 to 99 are known"):
            found.band(np.array([3.0]), level)


def test_one_prompt_vouches_for_no_band() -> None:
    raw, mos, _ = drawn(np.random.default_rng(0), 20, 1, 0.9)
    assert calibrate(raw, mos, np.zeros(20), 0, 5).half_widths == NO_BANDS


@pytest.mark.parametrize(
    ("raw", "mos", "told"),
    [
        ([], [], "no validation image to calibrate on"),
        ([0.1, np.nan], [1, 2], "wants finite scores, and MOS between 0 and 5"),
        ([0.1, 0.2], [1, 6], "wants finite scores, and MOS between 0 and 5"),
        ([0.1, 0.2], [1, np.nan], "wants finite scores, and MOS between 0 and 5"),
    ],
)
def test_what_cannot_be_calibrated_is_told(raw: list[float], mos: list[float], told: str) -> None:
    with pytest.raises(AgiqaError, match=told):
        calibrate(np.array(raw), np.array(mos), np.arange(len(raw)), 0, 5)


def test_what_is_told_without_a_calibration_is_the_raw_score_on_the_scale() -> None:
    np.testing.assert_allclose(told_mos(np.array([0.0, 0.25, 1.0]), None, 1.0, 5.0), [1.0, 2.0, 5.0])
    found = Calibration(0.0, 1.0, 1.0, 5.0, NO_BANDS, 3, 2)
    np.testing.assert_allclose(told_mos(np.array([0.0, np.log(3)]), found, 1.0, 5.0), [3.0, 4.0])


def test_it_comes_back_from_its_record() -> None:
    found = calibrate(*drawn(np.random.default_rng(0), 12, 2, 0.7), 0, 5)
    assert Calibration.from_record(found.record()) == found
