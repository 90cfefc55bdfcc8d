"""What is unfamiliar: the distance against the textbook's, and the share of images that count so."""

import numpy as np
import pytest

from pipeline.familiarity import Familiarity, familiarise


def normal(seed: int, count: int, width: int = 4) -> np.ndarray:
    """Return features of very different spreads that go together."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(width, width))
    return (rng.normal(size=(count, width)) @ mix) * 10.0 ** (np.arange(width) % 4) + 5


def test_of_few_features_it_is_mahalanobis() -> None:
    """With three directions of four kept, the rest is the fourth, and nothing is left to approximate."""
    train, new = normal(0, 400), normal(1, 7) + 2
    found = familiarise(train, normal(2, 50))
    inverse = np.linalg.inv(np.cov(train.T))
    expected = [np.sqrt((row - train.mean(axis=0)) @ inverse @ (row - train.mean(axis=0)) / 4) for row in new]
    np.testing.assert_allclose(found.distance(new), expected, rtol=1e-3)


def test_one_image_in_fifty_is_unfamiliar_and_strangers_are() -> None:
    width = 60
    found = familiarise(normal(0, 900, width), normal(1, 400, width))
    assert 0.003 < found.is_unfamiliar(normal(2, 2000, width)).mean() < 0.05
    strange = normal(3, 200, width) + 4 * normal(0, 900, width).std(axis=0) * np.sign(np.arange(width) % 3 - 1)
    assert found.is_unfamiliar(strange).mean() > 0.95
    assert found.basis.shape == (32, width)
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(32), atol=1e-5)


def test_the_limit_is_an_order_statistic_of_validation() -> None:
    train, validation = normal(0, 300), normal(1, 99)
    found = familiarise(train, validation)
    assert found.limit == sorted(found.distance(validation))[97]  # ceil(.98 x 100) = 98
    few = familiarise(train, validation[:5])
    assert few.limit == few.distance(validation[:5]).max()


def test_constant_features_and_few_images_are_no_trouble() -> None:
    train = normal(0, 6)
    train[:, 1] = 3.0
    found = familiarise(train, train[:2])
    assert np.isfinite(found.distance(train)).all()
    assert found.is_unfamiliar(train[:1] + np.array([0, 0, 1e5, 0])).all()
    one = familiarise(np.arange(20.0)[:, None], np.array([[3.0]]))
    assert one.distance(np.array([[9.5]])) == pytest.approx([0], abs=1e-5)


def test_it_comes_back_from_its_tensors() -> None:
    found = familiarise(normal(0, 300), normal(1, 40))
    back = Familiarity.from_tensors(found.tensors(), found.limit)
    np.testing.assert_array_equal(back.distance(normal(2, 9)), found.distance(normal(2, 9)))
