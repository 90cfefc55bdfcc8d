"""Score images with onnxruntime, Pillow and numpy alone: python score_with_onnxruntime.py scorer.onnx IMAGE..."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
record = json.loads(session.get_modelmeta().custom_metadata_map["agiqa"])  # `agiqa export` wrote it
rule, low, high = record["windows"], record["mos_low"], record["mos_high"]
size, mean, std = rule["window_size"], np.float32(rule["mean"]), np.float32(rule["std"])


def starts(length: int) -> list[int]:
    found = list(range(0, length - size + 1, rule["stride"]))
    return found + [length - size] * (rule["cover"] == "all" and found[-1] != length - size)


for path in sys.argv[2:]:
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if (scale := size / min(image.size)) > 1:
        image = image.resize([max(size, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
    data = ((np.asarray(image, np.float32) / 255 - mean) / std).transpose(2, 0, 1)
    windows = np.stack([data[:, y : y + size, x : x + size] for y in starts(image.height) for x in starts(image.width)])
    parts = np.array_split(windows, len(windows) // 64 + 1)
    raw = np.concatenate([session.run(None, {"windows": part})[0] for part in parts]).mean()
    print(f"{path}\traw {raw:.6f}\tMOS {low + raw * (high - low):.4f} of {low:g}..{high:g}")
