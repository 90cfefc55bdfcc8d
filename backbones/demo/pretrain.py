"""Pre-train the demo backbone, a tiny CLIP, on endless drawn and procedural pictures; see README.md beside this file.

Run from the repository root: `python backbones/demo/pretrain.py --minutes 55`. It can be killed and started again: it
goes on from the last state in `--work`. Uses our `pipeline.data.scenes`, and `distortions.py` and `shared.py` one
folder up; no MOS label of any data set enters.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]  # so that the script runs without the package installed

from distortions import DISTORTIONS, NAMES, SIDE, distort, quality_of  # noqa: E402
from shared import encode_texts, import_open_clip, read_towers, token_rows, write_towers  # noqa: E402

from pipeline.data import scenes  # noqa: E402

CROP = 64
SCENES, CROPS = 12, 4  # pictures a step, crops a picture
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
PROMPT_SLOTS = 8  # half of the quality texts carry this many noise tokens, as learned prompts will do downstream

# ---------------------------------------------------------------- clean pictures


def load_photos(folder: Path | None) -> list[np.ndarray]:
    """Return the photographs at hand as uint8 RGB: scikit-learn's two, matplotlib's one, and those of `folder`."""
    import matplotlib
    import sklearn.datasets

    files = sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
    files.append(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    if folder is not None:
        known = {file.name for file in files}
        files += [file for file in sorted(folder.iterdir()) if file.name not in known]
    photos = []
    for file in files:
        if file.is_file():
            photo = Image.open(file).convert("RGB")
            photo.thumbnail((900, 900))
            photos.append(np.asarray(photo))
    return photos


def cut_photo(photos: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Return a random piece of a random photograph at a random scale, with flips and colour changes."""
    photo = photos[rng.integers(len(photos))]
    scale = np.exp(rng.uniform(np.log(0.45), np.log(1.3)))
    need = min(int(SIDE / scale), *photo.shape[:2])
    top, left = rng.integers(photo.shape[0] - need + 1), rng.integers(photo.shape[1] - need + 1)
    piece = Image.fromarray(photo[top : top + need, left : left + need]).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    picture = np.asarray(piece, np.float32) / 255
    picture = np.rot90(picture, rng.integers(4))
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    if rng.random() < 0.5:
        picture = picture[..., rng.permutation(3)]
    return np.clip(picture ** rng.uniform(0.75, 1.35), 0, 1).astype(np.float32)


def colour_fields(rng: np.random.Generator, exponent: float) -> np.ndarray:
    """Return a random colour picture with a 1/f**exponent spectrum and correlated channels."""
    light = scenes.noise_field(rng, SIDE, exponent)[..., None]
    tint = np.stack([scenes.noise_field(rng, SIDE, exponent + 0.3) for _ in range(2)], -1) @ rng.normal(0, 0.6, (2, 3))
    picture = rng.uniform(0.3, 0.7, 3) + rng.uniform(0.08, 0.22) * (light + rng.uniform(0.1, 0.9) * tint)
    return np.clip(picture, 0, 1).astype(np.float32)


def dead_leaves(rng: np.random.Generator, photos: list[np.ndarray]) -> np.ndarray:
    """Return occluding discs and boxes with power-law sizes, each with its own colour and surface."""
    picture = colour_fields(rng, rng.uniform(0.9, 1.8))
    surfaces = [colour_fields(rng, rng.uniform(0.6, 2.0)), cut_photo(photos, rng)]
    palette = rng.uniform(0.05, 0.95, (6, 3))
    for _ in range(rng.integers(30, 110)):
        radius = min(4.0 * rng.random() ** -0.6, 60.0)
        row, column = rng.uniform(0, SIDE, 2)
        r0, r1 = max(0, int(row - radius)), min(SIDE, int(row + radius) + 2)
        c0, c1 = max(0, int(column - radius)), min(SIDE, int(column + radius) + 2)
        rows, columns = np.mgrid[r0:r1, c0:c1].astype(np.float32)
        if rng.random() < 0.6:
            depth = radius - np.hypot(rows - row, columns - column)
        else:
            turn = rng.uniform(0, np.pi)
            along = (rows - row) * np.cos(turn) + (columns - column) * np.sin(turn)
            across = (columns - column) * np.cos(turn) - (rows - row) * np.sin(turn)
            depth = 0.65 * radius - np.maximum(np.abs(along), np.abs(across) * rng.uniform(1, 3))
        mask = np.clip(depth + 0.5, 0, 1)[..., None]
        surface = surfaces[rng.integers(2)][r0:r1, c0:c1] - 0.5
        leaf = palette[rng.integers(6)] + rng.normal(0, 0.06, 3) + rng.uniform(0, 0.8) * surface
        picture[r0:r1, c0:c1] = picture[r0:r1, c0:c1] * (1 - mask) + leaf * mask
    return np.clip(picture, 0, 1).astype(np.float32)


def clean_picture(rng: np.random.Generator, photos: list[np.ndarray]) -> tuple[np.ndarray, str]:
    """Return a flawless picture, float32 (SIDE, SIDE, 3) in [0, 1], and its caption."""
    kind = rng.random()
    if kind < 0.35:
        scene = scenes.draw_scene(rng)
        return scenes.render(scene, rng, SIDE, detail=rng.uniform(0, 2)), scenes.caption(scene)
    if kind < 0.5:  # drawn things upon something natural
        scene = scenes.draw_scene(rng)
        choice = rng.random()
        if choice < 0.6:
            ground, word = cut_photo(photos, rng), "a natural"
        elif choice < 0.8:
            ground, word = dead_leaves(rng, photos), "a crowded"
        else:
            ground, word = colour_fields(rng, rng.uniform(0.8, 2)), "a cloudy"
        text = scenes.caption(scene).split(",")[0] + f", on {word} background"
        return scenes.render(scene, rng, SIDE, ground=ground, detail=rng.uniform(0, 1)), text
    if kind < 0.8:
        return cut_photo(photos, rng), "a natural scene"
    if kind < 0.93:
        return dead_leaves(rng, photos), "many overlapping pieces"
    return colour_fields(rng, rng.uniform(0.5, 2.2)), "clouds of colour"


# antonym texts: good text, bad text, and which severities the answer falls with (None: the quality itself)
ANTONYMS: tuple[tuple[str, str, tuple[str, ...] | None], ...] = (
    ("good photo.", "bad photo.", None),
    ("aligned photo.", "misaligned photo.", ("warp", "shift", "ghost", "blobs", "scramble")),
    ("sharp photo.", "blurry photo.", ("blur", "motion", "upscale", "smear", "blobs")),
    ("clean photo.", "noisy photo.", ("noise", "chroma_noise", "residual_noise", "scanlines", "grid")),
    ("smooth photo.", "blocky photo.", ("jpeg", "pixelate", "banding")),
    ("colorful photo.", "dull photo.", ("fade", "saturation", "cast", "exposure")),
    ("high quality photo.", "low quality photo.", None),
)


# ---------------------------------------------------------------- statistics of a crop, the pretext targets


def crop_statistics(crops: Tensor) -> Tensor:
    """Return hand-crafted statistics of crops: natural-scene, sharpness, spectral, colour and blocking ones.

    Args:
        crops: RGB in [0, 1], shape (B, 3, CROP, CROP).

    Returns:
        Shape (B, statistics), energies as logarithms, not standardised.
    """
    found: list[Tensor] = []
    red, green, blue = crops.unbind(1)
    light = 0.299 * red + 0.587 * green + 0.114 * blue  # (B, H, W)
    taps = torch.exp(-0.5 * (torch.arange(-3, 4) / 1.17) ** 2)
    taps = taps / taps.sum()

    def window(field: Tensor) -> Tensor:
        field = F.pad(field[:, None], (3, 3, 3, 3), mode="reflect")
        return F.conv2d(F.conv2d(field, taps.view(1, 1, 1, 7)), taps.view(1, 1, 7, 1))[:, 0]

    def log(value: Tensor) -> Tensor:
        return torch.log(value + 1e-4)

    scale = light
    for _ in range(3):
        mean = window(scale)
        deviation = (window(scale * scale) - mean * mean).clamp_min(0).sqrt()
        mscn = (scale - mean) / (deviation + 1 / 255)
        size = mscn.abs().mean((1, 2))
        variance = mscn.var((1, 2))
        standard = (mscn - mscn.mean((1, 2), keepdim=True)) / (variance + 1e-4).sqrt()[:, None, None]
        found += [size, variance, (standard**3).mean((1, 2)), log((standard**4).mean((1, 2)))]
        for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
            product = mscn * torch.roll(mscn, (down, right), (1, 2))
            found += [product.mean((1, 2)), product.abs().mean((1, 2))]
        found += [log(deviation.mean((1, 2))), log(deviation.std((1, 2)))]
        across, down_ = scale[:, 1:-1, 2:] - scale[:, 1:-1, :-2], scale[:, 2:, 1:-1] - scale[:, :-2, 1:-1]
        slope = (across**2 + down_**2 + 1e-8).sqrt()
        second = (
            scale[:, 1:-1, 2:]
            + scale[:, 1:-1, :-2]
            + scale[:, 2:, 1:-1]
            + scale[:, :-2, 1:-1]
            - 4 * scale[:, 1:-1, 1:-1]
        )
        found += [log(slope.mean((1, 2))), log(slope.std((1, 2))), log(second.abs().mean((1, 2)))]
        scale = F.avg_pool2d(scale[:, None], 2)[:, 0]
    power = torch.fft.rfft2(light - light.mean((1, 2), keepdim=True)).abs() ** 2 / light[0].numel() ** 2
    radius = torch.hypot(torch.fft.fftfreq(CROP)[:, None], torch.fft.rfftfreq(CROP)[None, :])
    for low, high in ((0.01, 0.06), (0.06, 0.14), (0.14, 0.26), (0.26, 0.38), (0.38, 0.75)):
        found.append(torch.log((power * ((radius >= low) & (radius < high))).sum((1, 2)) + 1e-9))
    opponent, other = red - green, 0.5 * (red + green) - blue
    spread = (opponent.var((1, 2)) + other.var((1, 2))).sqrt()
    chroma = (opponent**2 + other**2 + 1e-8).sqrt()
    saturation_ = (crops.amax(1) - crops.amin(1)) / (crops.amax(1) + 1e-3)
    found += [opponent.mean((1, 2)), other.mean((1, 2)), log(opponent.std((1, 2))), log(other.std((1, 2)))]
    found += [log(spread), chroma.mean((1, 2)), saturation_.mean((1, 2)), saturation_.std((1, 2))]
    found.append(
        ((opponent / chroma).mean((1, 2)) ** 2 + (other / chroma).mean((1, 2)) ** 2).sqrt()
    )  # hue concentration
    for plane in (opponent, other):
        found.append(log((plane[:, :, 1:] - plane[:, :, :-1]).abs().mean((1, 2))))
    flat = light.flatten(1)
    found += [flat.mean(1), flat.std(1), *flat.quantile(torch.tensor([0.05, 0.95]), dim=1)]
    for step in (
        light[:, :, 1:] - light[:, :, :-1],
        light.transpose(1, 2)[:, :, 1:] - light.transpose(1, 2)[:, :, :-1],
    ):
        edge = F.pad(step.abs().mean(1), (0, 1))  # (B, 64): mean jump at every column
        phases = edge.view(len(edge), -1, 8).mean(1)
        found.append(torch.log((phases.amax(1) + 1e-3) / (phases.mean(1) + 1e-3)))
    checker = (light[:, ::2, ::2] + light[:, 1::2, 1::2] - light[:, 1::2, ::2] - light[:, ::2, 1::2]).abs().mean((1, 2))
    found.append(log(checker))
    return torch.stack(found, 1)


# ---------------------------------------------------------------- batches


def make_batch(seed: tuple[int, ...], photos: list[np.ndarray]) -> dict[str, object]:
    """Return one batch, the same for the same seed: crops uint8 (SCENES*CROPS, 3, 64, 64), captions, targets."""
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    crops, captions, all_severities, qualities = [], [], [], []
    for _ in range(SCENES):
        picture, text = clean_picture(rng, photos)
        image, severities = distort(picture, rng)
        quality, structure = quality_of(severities)
        if rng.random() < 0.5:
            word = DISTORTIONS[NAMES[int(np.argmax(severities))]][3] + " " if rng.random() < 0.6 else ""
            opening = "good photo of " if quality > 0.65 else f"bad {word}photo of " if quality < 0.4 else "photo of "
            text = opening + text
        captions.append(text)
        all_severities.append(severities)
        qualities.append((quality, structure))
        for top, left in rng.integers(0, SIDE - CROP + 1, (CROPS, 2)):
            crops.append(image[top : top + CROP, left : left + CROP].transpose(2, 0, 1))
    pixels = np.stack(crops)
    statistics = crop_statistics(torch.from_numpy(pixels).float() / 255)
    return {
        "crops": pixels,
        "captions": captions,
        "severities": np.stack(all_severities),
        "quality": np.array(qualities, np.float32),
        "statistics": statistics.numpy(),
    }


def work(queue: multiprocessing.Queue, seed: int, first: int, photos: list[np.ndarray]) -> None:
    """Fill the queue with the batches first, first + 1, ... at low priority, until killed."""
    os.nice(10)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler, inherited by the fork, would ignore it
    step = first
    while True:
        queue.put(make_batch((seed, step), photos))
        step += 1


def stream(seed: int, first: int, photos: list[np.ndarray]) -> Iterator[dict[str, object]]:
    """Yield batches made by one worker process, in order."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue(maxsize=6)
    worker = context.Process(target=work, args=(queue, seed, first, photos), daemon=True)
    worker.start()
    try:
        while True:
            yield queue.get(timeout=120)
    finally:
        worker.terminate()
        worker.join()


# ---------------------------------------------------------------- model

EXTRA_WORDS = (
    "a an the of on in and with photo image picture . , natural crowded cloudy scene background many overlapping \
pieces clouds colour good bad small large above below left right aligned misaligned sharp blurry clean noisy smooth \
blocky colorful dull high low quality soft harsh patterned flat tinted dark distorted smeared broken double melted"
)


def words() -> list[str]:
    """Return every word that the pre-training can say."""
    return [
        *EXTRA_WORDS.split(),
        *" ".join([*scenes.SHAPES, *scenes.COLOURS, *scenes.TEXTURES, *scenes.SIZES, *scenes.RELATIONS]).split(),
    ]


class Pretraining(nn.Module):
    """The CLIP towers with a token embedding of the used rows only, and the heads that are dropped afterwards."""

    def __init__(self, statistics: int) -> None:
        super().__init__()
        open_clip = import_open_clip()
        open_clip.add_model_config(HERE / "demo-vit.json")
        config = json.loads((HERE / "demo-vit.json").read_text())
        self.clip = open_clip.create_model("demo-vit", pretrained=None)
        tokenizer = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
        rows = token_rows(tokenizer, words())
        self.tokenizer = tokenizer
        embedding = nn.Embedding(len(rows), self.clip.token_embedding.embedding_dim)
        nn.init.normal_(embedding.weight, std=0.02)
        self.clip.token_embedding = embedding
        self.register_buffer("rows", rows)
        self.register_buffer("statistics_mean", torch.zeros(statistics))
        self.register_buffer("statistics_std", torch.ones(statistics))
        width = config["embed_dim"]
        self.statistics_head = nn.Linear(width, statistics)
        self.severity_head = nn.Linear(width, len(NAMES))

    def image_features(self, pixels: Tensor) -> Tensor:
        """Return features before normalisation, (B, E), of uint8 crops (B, 3, 64, 64)."""
        mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
        return self.clip.encode_image((pixels.float() / 255 - mean) / std)

    def text_features(self, texts: Sequence[str], slots: Tensor | None = None) -> Tensor:
        """Return features, (B, E), with noise tokens `slots` (n, D) after SOS if given."""
        return encode_texts(self.clip, self.rows, self.tokenizer, texts, slots)


def losses(
    model: Pretraining, batch: dict[str, object], rng: np.random.Generator, antonyms: Sequence[int]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the joint loss of a batch and its parts (and predictions, for the probes)."""
    pixels = torch.from_numpy(batch["crops"])
    severities = torch.from_numpy(batch["severities"]).repeat_interleave(CROPS, 0)
    quality = torch.from_numpy(batch["quality"]).repeat_interleave(CROPS, 0)
    wanted = (torch.from_numpy(batch["statistics"]) - model.statistics_mean) / model.statistics_std
    wanted = wanted.clamp(-4, 4)
    features = model.image_features(pixels)  # (SCENES*CROPS, E)
    unit = F.normalize(features, dim=-1)
    scale = model.clip.logit_scale.exp()
    parts: dict[str, Tensor] = {}
    statistics = model.statistics_head(features)
    parts["statistics"] = F.smooth_l1_loss(statistics, wanted, beta=0.5)
    parts["severity"] = F.mse_loss(model.severity_head(features), severities)

    captions = list(batch["captions"])
    texts = F.normalize(model.text_features(captions), dim=-1)
    pooled = F.normalize(unit.view(SCENES, CROPS, -1).mean(1), dim=-1)
    same = torch.tensor([[float(a == b) for b in captions] for a in captions])
    same = same / same.sum(1, keepdim=True)
    logits = scale * pooled @ texts.T
    parts["contrastive"] = 0.5 * (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same))

    slots = None
    if rng.random() < 0.5:
        slots = torch.from_numpy(rng.normal(0, 0.02, (PROMPT_SLOTS, 128)).astype(np.float32))
    pairs = [ANTONYMS[k] for k in antonyms]
    poles = F.normalize(model.text_features([text for pair in pairs for text in pair[:2]], slots), dim=-1)
    cosines = unit @ poles.T  # (B, 2 * pairs)
    for k, (good, _, names) in enumerate(pairs):
        if names is None:
            target = quality[:, 0]
        elif good == "aligned photo.":
            target = quality[:, 1]
        else:
            target = 1 - severities[:, [NAMES.index(name) for name in names]].amax(1) ** 0.8
        answer = scale * (cosines[:, 2 * k] - cosines[:, 2 * k + 1])
        parts[good] = F.binary_cross_entropy_with_logits(answer, target)
        if k == 0:
            predicted = answer
    total = 2 * parts["statistics"] + 4 * parts["severity"] + 0.25 * parts["contrastive"]
    total = total + sum(parts[pair[0]] for pair in pairs)
    return total, parts | {"predicted": predicted, "target": quality[:, 0], "decoded": statistics, "wanted": wanted}


def probe(model: Pretraining, batches: Sequence[dict[str, object]]) -> dict[str, float]:
    """Return losses, quality SRCC and the statistics' R2 on held-out procedural batches."""
    from scipy.stats import spearmanr

    model.eval()
    sums: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for batch in batches:
            for name, value in losses(model, batch, np.random.default_rng(0), range(len(ANTONYMS)))[1].items():
                sums.setdefault(name, []).append(value)
    model.train()
    joined = {name: torch.cat(sums.pop(name)) for name in ("predicted", "target", "decoded", "wanted")}
    error = ((joined["decoded"] - joined["wanted"]) ** 2).mean(0) / joined["wanted"].var(0)
    values = {name: float(torch.stack(parts).mean()) for name, parts in sums.items()}
    values["statistics_r2"] = float((1 - error).mean())
    values["quality_srcc"] = float(spearmanr(joined["predicted"], joined["target"])[0])
    return {name: round(value, 4) for name, value in values.items()}


def save_state(path: Path, state: dict[str, object]) -> None:
    """Write the resume state; atomic."""
    half_done = path.with_name(path.name + ".part")
    torch.save(state, half_done)
    os.replace(half_done, path)


def main(argv: Sequence[str] | None = None) -> None:
    """Pre-train until the minutes or steps are used up, exporting usable weights on the way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=55, help="training time in all, resumed parts included")
    parser.add_argument("--steps", type=int, default=10**9, help="stop after this many steps in all")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for weights.safetensors and pretraining.json")
    parser.add_argument(
        "--work", type=Path, default=HERE.parents[1] / ".work" / "demo-pretraining", help="resume state"
    )
    parser.add_argument("--photos", type=Path, default=None, help="folder of further photographs to cut textures from")
    parser.add_argument("--every", type=float, default=300, help="seconds between exports")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1.2e-3, help="peak learning rate")
    parser.add_argument("--calibration", type=int, default=20, help="batches to standardise the statistics with")
    parser.add_argument("--start", type=Path, default=None, help="weights.safetensors of an earlier leg to begin with")
    arguments = parser.parse_args(argv)

    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    arguments.work.mkdir(parents=True, exist_ok=True)
    photos = load_photos(arguments.photos)
    held_out = [make_batch((arguments.seed, 10**8 + k), photos) for k in range(min(12, arguments.calibration))]
    model = Pretraining(held_out[0]["statistics"].shape[1])
    average = Pretraining(held_out[0]["statistics"].shape[1])
    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=arguments.rate, betas=(0.9, 0.98))
    state_file = arguments.work / "state.pt"
    step, seconds, history = 0, 0.0, []
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds, history = state["step"], state["seconds"], state["history"]
    else:
        if arguments.start is not None:
            read_towers(model.clip, model.rows, arguments.start)
        calibration = np.concatenate(
            [make_batch((arguments.seed, 2 * 10**8 + k), photos)["statistics"] for k in range(arguments.calibration)]
        )
        model.statistics_mean.copy_(torch.from_numpy(np.median(calibration, 0)))
        model.statistics_std.copy_(torch.from_numpy(calibration.std(0) + 1e-4))
        average.load_state_dict(model.state_dict())

    def leave_behind() -> None:
        found = probe(average, held_out)
        history.append({"step": step, "minutes": round(seconds / 60, 2), **found})
        write_towers(average.clip, average.rows, arguments.out / "weights.safetensors")
        summary = {
            "steps": step,
            "pictures": step * SCENES,
            "crops": step * SCENES * CROPS,
            "minutes": round(seconds / 60, 2),
            "seed": arguments.seed,
            "photographs": len(photos),
            "held_out": history,
        }
        text = json.dumps(summary, indent=1)
        half_done = arguments.out / "pretraining.json.part"
        half_done.write_text(text + "\n")
        os.replace(half_done, arguments.out / "pretraining.json")
        save_state(
            state_file,
            {
                "model": model.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "seconds": seconds,
                "history": history,
            },
        )
        tqdm.write(json.dumps(history[-1]), file=sys.stderr)

    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.append(number))
    last_export = seconds
    bar = tqdm(total=round(arguments.minutes * 60), initial=round(seconds), unit="s", mininterval=2, file=sys.stderr)
    batches = stream(arguments.seed, step, photos)
    smooth: dict[str, float] = {}
    while step < arguments.steps and seconds < arguments.minutes * 60 and not stopping:
        started = time.monotonic()
        batch = next(batches)
        done = seconds / (arguments.minutes * 60)
        rate = min(1.0, (step + 1) / 150) * min(1.0, max(0.02, (1 - done) / 0.5))
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * rate
        rng = np.random.default_rng((arguments.seed, step, 7))
        total, parts = losses(model, batch, rng, (0, 1, 2 + int(rng.integers(len(ANTONYMS) - 2))))
        if not math.isfinite(float(total)):
            raise FloatingPointError(f"the loss of step {step} is {float(total)}; start again with a lower --rate")
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.clip.logit_scale.clamp_(0, math.log(100))
            keep = min(0.997, (step + 1) / (step + 10))
            for ours, theirs in zip(average.parameters(), model.parameters(), strict=True):
                ours.lerp_(theirs, 1 - keep)
            average.statistics_mean.copy_(model.statistics_mean)
            average.statistics_std.copy_(model.statistics_std)
        step += 1
        spent = time.monotonic() - started
        bar.update(round(seconds + spent) - round(seconds))
        seconds += spent
        for name in ("statistics", "severity", "contrastive", "good photo.", "aligned photo."):
            smooth[name] = 0.98 * smooth.get(name, float(parts[name])) + 0.02 * float(parts[name])
        if step % 20 == 0:
            bar.set_postfix_str(f"step {step} " + " ".join(f"{name} {value:.3f}" for name, value in smooth.items()))
        if seconds - last_export >= arguments.every:
            leave_behind()
            last_export = seconds
    batches.close()
    bar.close()
    leave_behind()


if __name__ == "__main__":
    main()
