"""The picture of a quality map: the image in grey under the colours of its scores."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, PngImagePlugin

from pipeline.data.places import MAP_MARK

MAP_SIDE = 1600  # pixels of a quality map's picture at most


def draw_map(pixels: np.ndarray, drawn: np.ndarray, to_mos: Callable[[np.ndarray], np.ndarray]) -> bytes:
    """Return a PNG of an image in grey under the colours of its quality map, with the colours' scale below.

    A mark in it keeps it from being scored as an image later.

    Args:
        pixels: Shape (H, W, 3), uint8.
        drawn: Raw scores, shape (H, W); NaN where no window reaches, which stays uncoloured.
        to_mos: Turns raw scores into MOS for the scale's labels.
    """
    import io

    from matplotlib import colormaps  # imported here: costs half a second

    low, high = float(np.nanmin(drawn)), float(np.nanmax(drawn))
    place = np.nan_to_num((drawn - low) / ((high - low) or 1.0))
    colours = colormaps["viridis"](place)[..., :3] * 255
    grey = pixels.mean(axis=2, keepdims=True)
    mixed = np.where(np.isnan(drawn)[..., None], grey, 0.45 * grey + 0.55 * colours).astype(np.uint8)
    height, width = drawn.shape
    whole = Image.new("RGB", (max(width, 260), height + 28), "white")
    whole.paste(Image.fromarray(mixed), (0, 0))
    ramp = (colormaps["viridis"](np.linspace(0, 1, 100))[None, :, :3] * 255).astype(np.uint8).repeat(12, axis=0)
    whole.paste(Image.fromarray(ramp), (80, height + 8))
    pen = ImageDraw.Draw(whole)
    worst, best = (float(to_mos(np.float64(value))) for value in (low, high))
    pen.text((4, height + 8), f"worst {worst:.2f}", fill="black")
    pen.text((186, height + 8), f"best {best:.2f}", fill="black")
    buffer = io.BytesIO()
    mark = PngImagePlugin.PngInfo()
    mark.add_text("Software", MAP_MARK.decode())
    whole.save(buffer, "PNG", pnginfo=mark)
    return buffer.getvalue()
