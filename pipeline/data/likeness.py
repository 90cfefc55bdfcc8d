"""Whether two image files show one picture: by their bytes, by their pixels, and by a perceptual hash.

The hash is `imagehash.phash` with 16 x 16 bits: an image shrunk to 64 x 64 greys, and of its cosine transform the 16 x
16 lowest frequencies, each a bit that tells whether it lies above their median. It does not see colour, and it is no
judge of crops, mirrored or turned images.

Where NEAR comes from: measured on all 2,982 images of AGIQA-3K (512 x 512), in bits of 256.

- An image and itself shrunk to 128 x 128: at most 14. As JPEG of quality 50, shrunk to 256 x 256 first or not:
  at most 40 for all but one. As JPEG of quality 30: for all but three. Those few show darkness or one colour.
- Two images of one prompt: at least 88 if one generator made them, at least 90 if two did.
- Two images of different prompts, 4.4 million pairs: 0 for 11 pairs, which are one file under two names. For all others
  at least 50, and at least 76 but for six pairs of AttnGAN's, whose images resemble each other.

With 8 x 8 bits, the usual size, there is no such gap: a shrunk JPEG is up to 8 of 64 from its original, and so are two
different images.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipeline.data.decoding import open_image

SIDE = 16  # of the hash
BITS = SIDE * SIDE
NEAR = 40  # bits: what is at most so far apart is one picture
_FLAT = 8  # grey levels from darkest to lightest, below which an image has no content to tell it by


class Fingerprint(NamedTuple):
    """What an image file is known by.

    Attributes:
        content: SHA-256 of its bytes.
        pixels: SHA-256 of its size and RGB values, as `pipeline.data.decoding.open_image` gives them.
        look: The perceptual hash, shape (BITS / 64,), uint64; None for an image of one flat colour, which its
            pixels alone tell, since without content all bits are chance.
    """

    content: bytes
    pixels: bytes
    look: np.ndarray | None


def fingerprint(path: Path) -> Fingerprint:
    """Return what an image file is known by.

    Raises:
        ImageError: If it is no image that can be read.
        OSError: If the file cannot be read.
    """
    import imagehash  # here, since it brings scipy's transforms

    content = path.read_bytes()
    pixels = open_image(content)
    digest = hashlib.sha256(np.asarray(pixels.shape, np.int64).tobytes())
    digest.update(np.ascontiguousarray(pixels))
    image = Image.fromarray(pixels)
    darkest, lightest = image.convert("L").getextrema()
    look = None
    if lightest - darkest >= _FLAT:
        look = np.packbits(imagehash.phash(image, hash_size=SIDE).hash).view(np.uint64)
    return Fingerprint(hashlib.sha256(content).digest(), digest.digest(), look)


def distances(look: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return in how many bits hashes differ from one, shape (n,).

    Args:
        look: A hash, shape (BITS / 64,), uint64.
        others: Hashes, shape (n, BITS / 64), uint64.
    """
    return np.bitwise_count(look ^ others).sum(axis=1, dtype=np.int64)
