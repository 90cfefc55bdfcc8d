"""A made-up finished study of photos, two baselines in two rounds, small enough to publish and push in no time."""

from pathlib import Path

import numpy as np
from made_parts import SAID

from pipeline import layout
from pipeline.calibration import calibrate
from pipeline.familiarity import familiarise
from pipeline.files import file_md5, write_json
from pipeline.model.checkpoint_file import write_checkpoint
from pipeline.training import baselines

RNG = np.random.default_rng(0)
FEATURES, TARGETS = RNG.normal(size=(90, 3)), RNG.uniform(0.1, 0.9, size=90)


def a_run(root: Path, method: str, number: int, srcc: float, **changed: object) -> Path:
    """Write what train and evaluate leave of a baseline, with one checkpoint that works."""
    run = root / layout.run_folder("photos", method, number)
    model = baselines.fit_handcrafted(
        (FEATURES, TARGETS), learning_rate=0.1, max_iterations=5, max_depth=2, seed=number
    )
    checkpoint = layout.checkpoint_path(run / "train", 0)
    said = SAID | {
        "dataset": "photos", "method": method, "texts": [], "backbone": None, "windows": None, "residual_ratio": None,
        "statistics": ["a", "b", "c"], "prompt_depth": 0, "prompt_length": 0,
    }  # fmt: skip
    calibration = calibrate(TARGETS, 5 * TARGETS, np.arange(90), 0, 5)
    arrays = baselines.arrays("handcrafted", model, np.zeros((2, 2)))
    write_checkpoint(checkpoint, arrays, said, calibration, familiarise(FEATURES, FEATURES[:30]))
    record = {
        "dataset": "photos", "method": method, "kind": "baseline", "round": number, "leaks": [], "target": "quality",
        "shuffled_labels": False, "selected_epoch": 0, "checkpoint_md5": file_md5(checkpoint), "raters": "people",
        "backbone": {"name": "tiny", "origin": "random", "pretrained": None},
        "images": {"train": 60, "validation": 10, "test": 20}, "validation": {"srcc": srcc}, **changed,
    }  # fmt: skip
    write_json(run / "train" / "record.json", record)
    test = {
        "srcc": srcc, "srcc_low": srcc - 0.1, "srcc_high": srcc + 0.1, "plcc": 0.5, "plcc_low": 0.4, "plcc_high": 0.6,
        "rmse_calibrated": 0.7, "mae_calibrated": 0.55, "coverage": 0.91, "band_width": 2.2, "unfamiliar": 0.02,
    }  # fmt: skip
    generator = {
        name: {
            "n": 10, "mos_mean": mean, "score_mean": mean + gap, "srcc": None, "rmse_calibrated": 0.6, "coverage": 0.9
        }
        for name, mean, gap in (("glide", 2.0, 0.3), ("sdxl", 3.0, -0.4))
    }  # fmt: skip
    write_json(run / "evaluate" / "metrics.json", {"test": test, "validation": {"srcc": srcc}, "generator": generator})
    return run


def published_study(root: Path) -> Path:
    """Write the study into a folder, and return that."""
    write_json(
        root / "data/prepared/photos/card.json",
        {"dataset": "photos", "licence": "MIT", "mos_low": 0.0, "mos_high": 5.0, "notes": ["x"], "images": 90},
    )
    one = {"groups": {"train": 30, "validation": 5, "test": 10}, "shared_prompts": 0, "shared_images": 0}
    write_json(root / "data/splits/photos/audit.json", {"rounds": {"0": one, "1": one}})
    for number in range(2):
        rows = "image_id,group,subset\nb,g1,test\nc,g2,train\na,g3,test\n"
        (root / f"data/splits/photos/round-{number}.csv").write_text(rows)
    for number, (good, better) in enumerate([(0.6, 0.7), (0.5, 0.9)]):
        a_run(root, "probe", number, good)
        a_run(root, "handcrafted", number, better)
    return root
