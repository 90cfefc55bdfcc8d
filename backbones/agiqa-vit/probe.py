"""Measure exported weights on AGIQA-3K, after the fact; nothing of it goes back into the pre-training.

    AGIQA_DATA=FOLDER python backbones/agiqa-vit/probe.py weights.safetensors ...

For each file: SRCC with quality and alignment MOS of a ridge on the image embeddings of nine windows (128 px at stride
64, image shrunk to 256 px), five folds that share no prompt, and of the zero-shot score between "Good photo." and
"Bad photo.". Prints JSON; `--out` also writes it.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import re
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import normalize
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

import pretrain  # noqa: E402
from shared import import_open_clip, read_towers  # noqa: E402

SIDE, WINDOW, STRIDE = 256, 128, 64


def load_model(weights: Path) -> pretrain.Pretraining:
    """Return the towers with the weights of an export."""
    rows = load_file(weights)["token_embedding.rows"].long()
    context = json.loads((HERE / f"{pretrain.NAME}.json").read_text())["text_cfg"]["context_length"]
    model = pretrain.Pretraining(rows, import_open_clip().SimpleTokenizer(context_length=context))
    read_towers(model.clip, rows, weights)
    return model.eval().requires_grad_(False)


def load_images(archive: Path) -> tuple[np.ndarray, list[str], dict[str, np.ndarray]]:
    """Return AGIQA-3K's images shrunk to 256 px, uint8 (N, 256, 256, 3), their prompts, and their MOS by task."""
    with zipfile.ZipFile(archive) as stored:
        rows = list(csv.DictReader(io.TextIOWrapper(stored.open("data.csv"), "utf-8")))
        names = {Path(name).name: name for name in stored.namelist()}
        images = []
        for row in tqdm(rows, desc="images", mininterval=10, file=sys.stderr):
            image = Image.open(io.BytesIO(stored.read(names[row["name"]]))).convert("RGB")
            images.append(np.asarray(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)))
    mos = {
        "quality": np.array([float(row["mos_quality"]) for row in rows]),
        "alignment": np.array([float(row["mos_align"]) for row in rows]),
    }
    return np.stack(images), [row["prompt"] for row in rows], mos


@torch.no_grad()
def embed(model: pretrain.Pretraining, images: np.ndarray) -> np.ndarray:
    """Return the embeddings before normalisation of every window, shape (N, 9, E)."""
    places = range(0, SIDE - WINDOW + 1, STRIDE)
    found = []
    for image in tqdm(np.split(images, range(8, len(images), 8)), desc="windows", mininterval=30, file=sys.stderr):
        crops = [image[:, top : top + WINDOW, left : left + WINDOW] for top in places for left in places]
        pixels = np.stack(crops, 1).reshape(-1, WINDOW, WINDOW, 3).transpose(0, 3, 1, 2)
        features = model.embedding(model.tokens(torch.from_numpy(np.ascontiguousarray(pixels))))
        found.append(features.view(len(image), len(crops), -1).numpy())
    return np.concatenate(found)


@torch.no_grad()
def zero_shot(model: pretrain.Pretraining, features: np.ndarray) -> np.ndarray:
    """Return the mean over windows of the score between the two class texts, shape (N,)."""
    texts = normalize(model.text_features(["Good photo.", "Bad photo."]), dim=-1)
    logits = model.clip.logit_scale.exp() * normalize(torch.from_numpy(features), dim=-1) @ texts.T
    return logits.softmax(-1)[..., 0].mean(1).numpy()


def measure(model: pretrain.Pretraining, images: np.ndarray, prompts: list[str], mos: dict[str, np.ndarray]) -> dict:
    """Return the SRCCs of one set of weights."""
    features = embed(model, images)
    mean = features.mean(1)
    described = {"mean": mean, "mean_deviation": np.concatenate([mean, features.std(1)], 1)}
    found = {"zero_shot": spearmanr(zero_shot(model, features), mos["quality"])[0]}
    for task, target in mos.items():
        for name, values in described.items():
            ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 4, 11)))
            predicted = cross_val_predict(ridge, values, target, groups=prompts, cv=GroupKFold(5))
            found[f"ridge_{task}_{name}"] = spearmanr(predicted, target)[0]
    return {name: round(float(value), 3) for name, value in found.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the measures of each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, nargs="*", default=[HERE / "weights.safetensors"])
    parser.add_argument("--archive", type=Path, default=None, help="AGIQA-3K.zip (default: below AGIQA_DATA)")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to add the measures to")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args(argv)
    archive = arguments.archive
    if archive is None:
        if "AGIQA_DATA" not in os.environ:
            parser.error("give --archive, or set AGIQA_DATA to the folder of the real data sets")
        archive = Path(os.environ["AGIQA_DATA"], "agiqa3k", "AGIQA-3K.zip")
    torch.set_num_threads(arguments.threads)
    images, prompts, mos = load_images(archive)
    found = json.loads(arguments.out.read_text()) if arguments.out is not None and arguments.out.exists() else {}
    hours = re.compile(r"hours-([\d.]+)")
    for weights in sorted(arguments.weights, key=lambda path: float((hours.search(path.stem) or [0, 0])[1])):
        found[weights.stem] = measure(load_model(weights), images, prompts, mos)
        sys.stdout.write(json.dumps({weights.stem: found[weights.stem]}) + "\n")
        sys.stdout.flush()
        if arguments.out is not None:
            pretrain.write_json(arguments.out, found)


if __name__ == "__main__":
    main()
