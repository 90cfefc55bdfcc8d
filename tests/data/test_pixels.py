"""Prepared pixels: every image back as it went in, from files that are whole."""

import re
from pathlib import Path

import numpy as np
import pytest
from made_parts import bright_images, noise, pack_of, write_prepared

from pipeline.data.pixels import PixelPack, open_prepared


def test_pack_gives_back_every_image_and_refuses_a_short_file(tmp_path: Path) -> None:
    images = noise([(5, 7), (4, 4), (9, 6)])
    pack = pack_of(tmp_path, images)
    assert len(pack) == 3
    for index, image in enumerate(images):
        assert np.array_equal(pack[index], image)
    (tmp_path / "pixels.bin").write_bytes(b"123")
    with pytest.raises(ValueError, match=re.escape("pixels.bin holds 3 bytes, and the manifest speaks of 48")):
        PixelPack(tmp_path / "pixels.bin", [0], [4], [4])


def test_a_prepared_data_set_is_its_manifest_and_its_pixels(tmp_path: Path) -> None:
    expected = write_prepared(tmp_path)
    manifest, pack = open_prepared(tmp_path / "data/prepared/demo")
    assert manifest["image_id"].tolist() == expected["image_id"].tolist()
    for found, image in zip((pack[row] for row in range(24)), bright_images(), strict=True):
        np.testing.assert_array_equal(found, image)
        assert not found.flags.writeable
    with pytest.raises(FileNotFoundError, match=re.escape("manifest.parquet does not exist: run `dvc repro preproc")):
        open_prepared(tmp_path / "data/prepared/other")
