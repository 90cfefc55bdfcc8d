"""Measure scoring and training against the predecessor's procedure, plain open_clip, and the machine's own rate.

Run from the repository root: `make benchmark`, or `python benchmarks/speed.py --backbones ViT-B-32 --threads 1 2`;
`--quick` takes minutes. All contestants of a row run in turn in one process, so that a noisy machine disturbs them
alike, and every ratio is the median of the turns' own ratios. Rows of one thread count processor time, which other
programs on the machine disturb least; rows of more threads count wall time. Random weights serve, since speed does not
depend on them.

Writes benchmarks/results.csv, with machine, threads and load named in every row, and the table of docs/speed.md that is
made of it. `--gpu --batches 64 256 1024` measures a GPU instead and writes results-gpu.csv.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # so that the script runs without the package installed

import speed_table  # noqa: E402

from pipeline.data.decoding import open_image  # noqa: E402
from pipeline.data.pixels import PixelPack  # noqa: E402
from pipeline.model.backbone import Backbone  # noqa: E402
from pipeline.model.dcmpln import DCMPLN  # noqa: E402
from pipeline.model.folded import fold, image_scores, quantise  # noqa: E402
from pipeline.model.linear import int8_bits  # noqa: E402
from pipeline.model.loading import load_backbone  # noqa: E402
from pipeline.model.windows import (  # noqa: E402
    NORMALISATION,
    WindowRule,
    cut,
    normalise,
    window_origins,
)
from pipeline.training.crops import DevicePixels  # noqa: E402
from pipeline.training.step import (  # noqa: E402
    batch_step,
    micro_batch_for,
    score_tasks,
)

SIDE, STRIDE, PROMPTS = 512, 64, 8
# AGIQA-3K as this study splits it (round 0), and the protocols' windows an image.
TRAIN, VALIDATION, TEST, EPOCHS, FEW_WINDOWS = 2152, 238, 592, 50, 5
# The full study: 5 variants x 10 rounds of each data set; images to train on, of all three data sets together.
FULL_RUNS, FULL_TRAIN_IMAGES = 50, round(0.72 * 6462)


def make_model(backbone: Backbone) -> DCMPLN:
    """Return the whole model at the paper's sizes."""
    torch.manual_seed(0)
    return DCMPLN(backbone, prompt_depth=min(12, backbone.image_layers, backbone.text_layers))


def predecessors(model: DCMPLN) -> DCMPLN:
    """Make the model run its texts at full length, as the predecessor does; ours cuts them at the EOT token."""
    for name in ("main_tokens", "auxiliary_tokens"):
        tokens = getattr(model, name)
        setattr(model, name, F.pad(tokens, (0, model.backbone.context_length - tokens.shape[1])))
    return model


def needed_flops(backbone: Backbone, windows: int, patches: int) -> float:
    """Return multiply-adds x 2 that scoring an image cannot do without, counted from the tower's matrices.

    Prompts are keys and values only, every patch is embedded once, and the last layer computes the class token alone,
    whose single query needs neither keys nor values (see `pipeline.model.tower`). The prompts' own keys and values,
    norms and activations are not counted.

    Args:
        backbone: The tower.
        windows: Of the image.
        patches: Different ones among all windows.
    """
    width, tokens = backbone.image_width, 1 + (backbone.image_size // backbone.patch_size) ** 2
    pairs, heads = tokens + PROMPTS, backbone.image_tower().layers[0].heads
    layer = 12 * width * width * tokens + 2 * tokens * pairs * width  # in 3, out 1, MLP 8; attention
    last = 12 * width * width + 2 * heads * pairs * width  # one token; its heads look at tokens, not at keys
    window = (backbone.image_layers - 1) * layer + last + width * backbone.embed_dim
    return 2.0 * (windows * window + patches * 3 * backbone.patch_size**2 * width)


def matrix_products(backbone: Backbone, rows: int) -> Callable[[], object]:
    """Return the MLP's two products, the tower's widest, into memory that is there already: 16 rows D^2 FLOPs."""
    width = backbone.image_width
    narrow, wide, out = torch.randn(rows, width), torch.empty(rows, 4 * width), torch.empty(rows, width)
    expand, contract = torch.randn(width, 4 * width), torch.randn(4 * width, width)

    def products() -> None:
        torch.mm(narrow, expand, out=wide)
        torch.mm(wide, contract, out=out)

    return products


def interleaved(contestants: dict[str, Callable[[], object]], repeats: int, label: str) -> dict[str, list[float]]:
    """Return each contestant's seconds, turn by turn; all run in turn, after one round to warm up."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in tqdm(range(repeats + 1), desc=label, unit="turn"):
        for name, run in contestants.items():
            started = clock()
            run()
            if turn:
                seconds[name].append(clock() - started)
    return seconds


def ratio(over: list[float], under: list[float]) -> float:
    """Return the median of the turns' own ratios."""
    return statistics.median(one / other for one, other in zip(over, under, strict=True))


def scoring(backbone: Backbone, repeats: int) -> dict[str, float]:
    """Time the scoring of one 512x512 image at stride 64."""
    mean, std = NORMALISATION["clip"]
    rule = WindowRule(backbone.image_size, STRIDE, "reference", "clip", mean=mean, std=std)
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    origins = window_origins(SIDE, SIDE, rule)
    scorer, plain = fold(make_model(backbone)), predecessors(make_model(backbone))
    windows, small = normalise(cut(pixels, origins, rule.size), rule), quantise(scorer)

    @torch.no_grad()
    def predecessor() -> object:
        found = open_image(buffer.getvalue())
        return plain(normalise(cut(found, origins, rule.size), rule))

    @torch.no_grad()
    def open_clip() -> object:
        return backbone.encode_image(windows)

    with torch.no_grad():
        expected = plain(windows)[0].mean()
    drift = abs(float(expected) - float(image_scores(scorer, [pixels], 1, rule)[0]))
    assert drift < 1e-5, f"the fast score differs from the plain model's by {drift}"
    rows = len(origins) * (1 + (backbone.image_size // backbone.patch_size) ** 2)
    found = interleaved(
        {
            "ours": lambda: image_scores(scorer, [pixels], 1, rule),
            "few windows": lambda: image_scores(scorer, [pixels], 1, rule, windows=FEW_WINDOWS),
            "int8": lambda: image_scores(small, [pixels], 1, rule),
            "predecessor": predecessor,
            "open_clip": open_clip,
            "product": matrix_products(backbone, rows),
        },
        repeats,
        f"{backbone.name} scoring",
    )
    patches = len({place for origin in origins for place in _patch_places(origin, backbone)})
    ideal = needed_flops(backbone, len(origins), patches) / (16.0 * rows * backbone.image_width**2)  # products
    return {
        "ours_ms": 1e3 * statistics.median(found["ours"]),
        "predecessor_ms": 1e3 * statistics.median(found["predecessor"]),
        "few_windows_ms": 1e3 * statistics.median(found["few windows"]),
        "vs_predecessor": ratio(found["predecessor"], found["ours"]),
        "vs_open_clip": ratio(found["open_clip"], found["ours"]),
        "of_matrix_rate": ideal * ratio(found["product"], found["ours"]),
        "gflops": needed_flops(backbone, len(origins), patches) / 1e9,
        "int8_speedup": ratio(found["ours"], found["int8"]),
        "int8_bits": int8_bits(),
        "int8_drift": float((small(windows) - scorer(windows)).abs().max()),  # of a window
        "drift": drift,
    }


def _patch_places(origin: tuple[int, int], backbone: Backbone) -> Iterator[tuple[int, int]]:
    """Give the corners of one window's patches."""
    size, side = backbone.patch_size, backbone.image_size // backbone.patch_size
    return ((origin[0] + size * row, origin[1] + size * column) for row in range(side) for column in range(side))


def growth(backbone: Backbone, repeats: int) -> list[dict[str, object]]:
    """Time scoring by the number of images, of windows, and by resolution, one thing changed at a time."""
    mean, std = NORMALISATION["clip"]
    rule = WindowRule(backbone.image_size, STRIDE, "reference", "clip", mean=mean, std=std)
    scorer, noise = fold(make_model(backbone)), np.random.default_rng(0)

    def scored(count: int, side: int, windows: int | None) -> Callable[[], object]:
        images = [noise.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)]
        return lambda: image_scores(scorer, images, count, rule, windows=windows)

    cases = [(1, SIDE, None), (2, SIDE, None), (1, SIDE, 1), (1, SIDE, 5), (1, SIDE, 9)]
    cases += [(1, side, None) for side in (224, 768)]
    found = interleaved({str(case): scored(*case) for case in cases}, repeats, f"{backbone.name} growth")
    rows: list[dict[str, object]] = []
    for count, side, windows in cases:
        everything = len(window_origins(side, side, rule))
        milliseconds = 1e3 * statistics.median(found[str((count, side, windows))])
        per_window = milliseconds / (count * (windows or everything))
        images = f"{count} images" if count > 1 else "1 image"
        cut_out = f"{windows or everything} windows" if (windows or everything) > 1 else "1 window"
        rows.append({
            "what": f"score {images} of {side}x{side}, {cut_out}", "backbone": backbone.name,
            "threads": torch.get_num_threads(), "ours_ms": milliseconds, "ms_a_window": per_window,
        })  # fmt: skip
    return rows


def epoch_cost(score: dict[str, float], step: dict[str, float], batch: int) -> dict[str, float]:
    """Add up an epoch on AGIQA-3K from measured parts, in seconds.

    The predecessor trains on the same images and tests all windows of every test image through both branches in every
    epoch. This study validates on few windows, and tests once in all epochs.
    """
    ours_step, their_step = step["ours_ms"] / batch, step["predecessor_ms"] / batch
    ours = {
        "train": TRAIN * ours_step, "validation": VALIDATION * score["few_windows_ms"],
        "test": TEST * score["ours_ms"] / EPOCHS,
    }  # fmt: skip
    theirs = TRAIN * their_step + TEST * score["predecessor_ms"]
    return {
        "ours_train_s": ours["train"] / 1e3, "ours_validation_s": ours["validation"] / 1e3,
        "ours_test_share_s": ours["test"] / 1e3, "predecessor_train_s": TRAIN * their_step / 1e3,
        "predecessor_test_s": TEST * score["predecessor_ms"] / 1e3, "vs_predecessor": theirs / sum(ours.values()),
        "ours_ms": sum(ours.values()),
    }  # fmt: skip


def training(backbone: Backbone, batch: int, repeats: int) -> dict[str, float]:
    """Time one training step."""
    generator = torch.Generator().manual_seed(0)
    size = backbone.image_size
    images = torch.randn(batch, 3, size, size, generator=generator)
    main, auxiliary = (torch.rand(batch, generator=generator) for _ in range(2))
    ours, plain = make_model(backbone), predecessors(make_model(backbone))
    micro = micro_batch_for(backbone, "cpu", batch)
    optimisers = {
        "ours": torch.optim.Adam(ours.trainable_parameters(), lr=1e-4, fused=True),
        "predecessor": torch.optim.Adam(plain.trainable_parameters(), lr=1e-4),
    }

    rows = 2 * micro * (1 + (size // backbone.patch_size) ** 2)  # of a pass; both tasks

    def our_step() -> None:
        optimisers["ours"].zero_grad(set_to_none=True)
        batch_step(ours, lambda a, b: images[a:b], main, auxiliary, auxiliary_weight=0.1, micro_batch=micro)
        optimisers["ours"].step()

    def their_step() -> None:
        optimisers["predecessor"].zero_grad(set_to_none=True)
        found: tuple[Tensor, Tensor | None] = plain(images)
        loss = (found[0] - main).square().mean() + 0.1 * (found[1] - auxiliary).square().mean()
        loss.backward()
        optimisers["predecessor"].step()

    contestants = {"ours": our_step, "product": matrix_products(backbone, rows)}
    if predecessor_gb(backbone, batch) < 0.8 * available_gb():
        contestants["predecessor"] = their_step
    found = interleaved(contestants, repeats, f"{backbone.name} training, batch {batch}")
    ideal = batch * step_flops(backbone) / (16.0 * rows * backbone.image_width**2)  # products
    result = {
        "ours_ms": 1e3 * statistics.median(found["ours"]),
        "of_matrix_rate": ideal * ratio(found["product"], found["ours"]),
    }
    if "predecessor" in found:
        result["predecessor_ms"] = 1e3 * statistics.median(found["predecessor"])
        result["vs_predecessor"] = ratio(found["predecessor"], found["ours"])
    return result


def predecessor_gb(backbone: Backbone, batch: int) -> float:
    """Return about what the predecessor's step keeps: 20 floats a token, layer and channel, measured at ViT-B/32."""
    tokens = 1 + (backbone.image_size // backbone.patch_size) ** 2 + PROMPTS
    return 20 * 4 * 2 * batch * tokens * backbone.image_width * backbone.image_layers / 2**30


def available_gb() -> float:
    """Return the memory that programs can still get, in GB; without bound where the system does not say."""
    told = Path("/proc/meminfo")
    return memory("MemAvailable", told) if told.is_file() else float("inf")


def accelerator(backbone: Backbone, batches: Sequence[int]) -> list[dict[str, object]]:
    """Measure a GPU: scored images and trained crops a second in bfloat16, and the drift from float32."""
    device = torch.device("cuda")
    backbone.to(device)
    mean, std = NORMALISATION["clip"]
    rule = WindowRule(backbone.image_size, STRIDE, "reference", "clip", mean=mean, std=std)
    noise = np.random.default_rng(0)
    images = [noise.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(64)] * 8
    model = make_model(backbone).to(device)
    scorer = fold(model)

    def score(autocast: bool, part: list[np.ndarray]) -> np.ndarray:
        return image_scores(scorer, part, len(part), rule, device=device, autocast=autocast)

    exact, drifted = score(False, images[:64]), score(True, images[:64])
    started = time.perf_counter()
    score(True, images)
    row: dict[str, object] = {
        "what": "score 512x512, bfloat16", "images_per_second": len(images) / (time.perf_counter() - started),
        "drift": float(np.abs(exact - drifted).max()), "srcc": float(spearmanr(exact, drifted).statistic),
    }  # fmt: skip
    rows = [row]
    fastest, product = 0.0, gpu_product_rate(device)
    for compiled in (False, True):
        for batch in batches:
            rate = crops_a_second(model, images[:64], rule, batch, compiled)
            fastest = max(fastest, rate)
            rows.append({
                "what": "training step, bfloat16", "batch": batch, "compiled": compiled, "crops_per_second": rate,
                "tflops": rate * step_flops(backbone) / 1e12, "of_product_rate": rate * step_flops(backbone) / product,
                "peak_gb": torch.cuda.max_memory_allocated() / 2**30,
            })  # fmt: skip
    crops = FULL_RUNS * EPOCHS * FULL_TRAIN_IMAGES
    rows.append({"what": "full study, trainings alone, without what each start costs", "minutes": crops / fastest / 60})
    name = torch.cuda.get_device_name(device)
    return [{"device": name, "backbone": backbone.name, **row} for row in rows]


def gpu_product_rate(device: torch.device, side: int = 8192, repeats: int = 20) -> float:
    """Return the FLOPs a second of a large product in bfloat16: what utilisation is measured against."""
    left = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    left @ left
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        left @ left
    torch.cuda.synchronize()
    return repeats * 2.0 * side**3 / (time.perf_counter() - started)


def step_flops(backbone: Backbone) -> float:
    """Return multiply-adds x 2 of a training crop: both tasks, forward and the gradients of the activations.

    Patches and the first layer's queries, keys and values are the same for both tasks, and need no gradient. Prompts
    and texts, which run once a batch, are not counted.
    """
    patches, width = (backbone.image_size // backbone.patch_size) ** 2, backbone.image_width
    tower = needed_flops(backbone, 1, 0)
    embedding = needed_flops(backbone, 1, patches) - tower
    return embedding + 4 * tower - 3 * 2.0 * 3 * width * width * (1 + patches)


def crops_a_second(
    model: DCMPLN, images: list[np.ndarray], rule: WindowRule, batch: int, compiled: bool, steps: int = 30
) -> float:
    """Return trained crops a second on the GPU, cutting them there included, as `pipeline.training.fit.fit` does it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pixels.bin"
        path.write_bytes(b"".join(image.tobytes() for image in images))
        sides = [SIDE] * len(images)
        pack = PixelPack(path, np.arange(len(images)) * SIDE * SIDE * 3, sides, sides)
        pixels = DevicePixels(pack, np.arange(len(images)), rule, "cuda")
    slots = np.resize(np.arange(len(images)), batch)
    cut_out = pixels.crops(slots, slots, slots, slots % 2 == 0)
    target = torch.rand(batch, device="cuda")
    optimiser = torch.optim.Adam(model.trainable_parameters(), lr=1e-4, fused=True)
    passes = {"constants": torch.compile(model.constants), "score": torch.compile(score_tasks)} if compiled else {}

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        batch_step(
            model, lambda start, stop: normalise(cut_out(start, stop), rule, "cuda"), target, target,
            auxiliary_weight=0.1, micro_batch=batch, labelled=batch, autocast=True, **passes,
        )  # fmt: skip
        optimiser.step()

    for _ in range(5):
        step()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    return batch * steps / (time.perf_counter() - started)


def peak_memory(name: str, batch: int) -> float:
    """Return how far one training step raises the peak memory of a fresh process, in GB."""
    code = f"import sys; sys.path[:0] = [{str(HERE)!r}]; import speed; speed.print_step_memory({name!r}, {batch})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HERE.parent)
    return float(done.stdout.split()[-1])


def print_step_memory(name: str, batch: int) -> None:
    """Run one of our training steps and print how far its peak memory lies above the memory before it, in GB."""
    backbone = load_backbone(name, activation="quickgelu")
    model = make_model(backbone)
    optimiser = torch.optim.Adam(model.trainable_parameters(), lr=1e-4, fused=True)
    images = torch.randn(batch, 3, backbone.image_size, backbone.image_size)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading; Linux only, as is the next line
    before = memory("VmRSS")
    micro = micro_batch_for(backbone, "cpu", batch)
    batch_step(
        model, lambda a, b: images[a:b], torch.rand(batch), torch.rand(batch), auxiliary_weight=0.1, micro_batch=micro
    )
    optimiser.step()
    sys.stdout.write(f"{memory('VmHWM') - before:.3f}\n")


def memory(key: str, told: Path = Path("/proc/self/status")) -> float:
    """Return this process's memory (VmRSS) or its peak (VmHWM), or a line of another such file, in GB."""
    lines = told.read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key))) / 2**20


def machine() -> str:
    """Name the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores, torch {torch.__version__}"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbones", nargs="+", default=["ViT-B-32"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--gpu", action="store_true", help="measure the GPU alone; writes results-gpu.csv")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="ViT-B-32, three turns, batch 8 alone")
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.backbones, arguments.batches, arguments.repeats = ["ViT-B-32"], [8], 3
    rows: list[dict[str, object]] = []
    if arguments.gpu:
        for name in arguments.backbones:
            rows += accelerator(load_backbone(name, activation="quickgelu"), arguments.batches)
        write_csv(arguments.out / "results-gpu.csv", rows)
        return
    about = {"machine": machine()}
    for name in arguments.backbones:
        backbone = load_backbone(name, activation="quickgelu")
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            common = {"backbone": name, "threads": threads, **about}
            load = os.getloadavg()[0]
            score = scoring(backbone, arguments.repeats)
            rows.append({"what": "score a 512x512 image, 25 windows", **common, "load": load, **score})
            for batch in arguments.batches:
                load = os.getloadavg()[0]
                found = training(backbone, batch, max(3, arguments.repeats // (1 + batch // 16)))
                if threads == arguments.threads[-1]:
                    found["peak_gb"] = peak_memory(name, batch)
                rows.append({"what": f"training step, batch {batch}", **common, "load": load, **found})
                if batch == arguments.batches[-1] and "predecessor_ms" in found:
                    cost = epoch_cost(score, found, batch)
                    what = f"an epoch of AGIQA-3K, from these parts, batch {batch}"
                    rows.append({"what": what, **common, "load": load, **cost})
                write(arguments.out, rows)
        if name == arguments.backbones[0]:  # one tower tells how it grows
            torch.set_num_threads(arguments.threads[0])
            load = os.getloadavg()[0]
            rows += [{**row, **about, "load": load} for row in growth(backbone, min(3, arguments.repeats))]
            write(arguments.out, rows)


def write(out: Path, rows: list[dict[str, object]]) -> None:
    """Write what is measured so far: a run of an hour that is broken off keeps its rows."""
    write_csv(out / speed_table.RESULTS.name, rows)
    if out == HERE:
        speed_table.write()


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    """Write rows that may lack columns."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows
        )


if __name__ == "__main__":
    main()
