"""Score images with onnxruntime, Pillow and numpy alone: python score_with_onnxruntime.py scorer.onnx IMAGE..."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
record = json.loads(session.get_modelmeta().custom_metadata_map["agiqa"])  # `agiqa export` wrote it
rule, low, high, known = record["windows"], record["mos_low"], record["mos_high"], record.get("calibration")
size, mean, std = rule["window_size"], np.float32(rule["mean"]), np.float32(rule["std"])


def opened(path: str) -> Image.Image:  # of colour profiles (see `steps` in the record) it takes sRGB for granted
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode == "F" or image.mode.startswith("I;16"):  # floats in 0..1, or 16 bits, which Pillow clips at 255
        values = np.asarray(image, np.float64) * (255 if image.mode == "F" else 255 / 65535)
        image = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    if image.mode == "I" or min(image.size) < 16:
        raise ValueError("32-bit integers, or a side below 16 pixels")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def starts(length: int) -> list[int]:
    found = list(range(0, length - size + 1, rule["stride"]))
    return found + [length - size] * (rule["cover"] == "all" and found[-1] != length - size)


failures = 0
for path in sys.argv[2:]:
    try:
        image = opened(path)
    except Exception as error:  # Pillow raises nearly anything of a damaged file
        failures += 1
        print(f"{path}: {error}", file=sys.stderr)
        continue
    short = min(image.size)
    if (target := max(size, rule.get("shorter_side") or short)) != short:
        image = image.resize([round(side * target / short) for side in image.size], Image.Resampling.BICUBIC)
    data = ((np.asarray(image, np.float32) / 255 - mean) / std).transpose(2, 0, 1)
    windows = np.stack([data[:, y : y + size, x : x + size] for y in starts(image.height) for x in starts(image.width)])
    parts = np.array_split(windows, len(windows) // 64 + 1)
    found = [session.run(None, {"windows": part}) for part in parts]
    scores, features = (np.concatenate(side) for side in zip(*found, strict=True))
    raw = scores.mean()
    if record["deviation_weights"]:
        raw += features.std(axis=0) @ record["deviation_weights"]
    if known:
        mos = low + (high - low) / (1 + np.exp(-(known["offset"] + known["slope"] * raw)))
        half = known["half_widths"][90 - 50]  # of the 90 % band; null: the whole scale
        ends = (low, high) if half is None else (max(low, mos - half), min(high, mos + half))
        band = f", 90 % band {ends[0]:.4f} to {ends[1]:.4f}"
    else:
        mos, band = low + raw * (high - low), ", not calibrated"
    print(f"{path}\traw {raw:.6f}\tMOS {mos:.4f} of {low:g}..{high:g}{band}")
sys.exit(min(failures, 1))
