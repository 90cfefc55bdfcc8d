"""Pre-train agiqa-vit, a small CLIP whose image tower learns from a teacher; see README.md beside this file.

    python backbones/agiqa-vit/pretrain.py pack ...    # the repositories' pictures into one file, once; see --help
    python backbones/agiqa-vit/pretrain.py train       # goes on from where it was, until it is stopped
    python backbones/agiqa-vit/pretrain.py export      # weights, heads and log beside this file

It may be killed at any moment and started again. `train` begins from its own state in `--work`; where there is none,
from what `export` left beside this file; else anew. Only the pictures that `sources.json` names are read.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]  # so that it runs without the package installed

import packing  # noqa: E402
import teacher as teaching  # noqa: E402
from crops import CROP, LEVELS, Memo, Plan, Planner, all_texts, pixels_of  # noqa: E402
from distortions import DISTORTIONS, NAMES  # noqa: E402
from shared import encode_texts, import_open_clip, read_towers, token_rows, write_towers  # noqa: E402
from together import give, lead, obey_parent  # noqa: E402

from pipeline.data import scenes  # noqa: E402
from pipeline.training import statistics as handcrafted  # noqa: E402
from pipeline.training.ranks import ALONE, Ranks  # noqa: E402

NAME = "agiqa-vit"
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
PROMPT_SLOTS = 8  # noise tokens in half of the steps, in either tower, where learned prompts will stand downstream
# What is known of a crop without a label, and its channels: what the teacher sees, and the statistics of its pixels.
TARGETS = {"statistics": teaching.STATISTICS, "map16": 112, "map32": 320, "handcrafted": len(handcrafted.NAMES)}
LIMIT = 6.0  # standardised targets beyond it are cut: a few channels have long tails
SNAPSHOTS = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48)  # hours
WARM_UP = 500
NOUNS = ("photo", "image", "picture")
# Opposites, and the distortions that the answer falls with; the strings stand for all of them, by what they take.
QUALITY, STRUCTURE = "quality", "structure"
ANTONYMS: tuple[tuple[str, str, str | tuple[str, ...]], ...] = (
    ("good", "bad", QUALITY),
    ("aligned", "misaligned", STRUCTURE),
    ("high quality", "low quality", QUALITY),
    ("excellent", "terrible", QUALITY),
    ("perfect", "poor", QUALITY),
    ("great", "awful", QUALITY),
    ("beautiful", "ugly", QUALITY),
    ("flawless", "flawed", QUALITY),
    ("natural", "unnatural", STRUCTURE),
    ("intact", "broken", STRUCTURE),
    ("sharp", "blurry", ("blur", "motion", "upscale", "smear", "blobs")),
    ("clean", "noisy", ("noise", "chroma_noise", "residual_noise", "scanlines", "grid")),
    ("smooth", "blocky", ("jpeg", "pixelate", "banding")),
    ("colorful", "dull", ("fade", "saturation", "cast", "exposure")),
    ("detailed", "blurred", ("blur", "motion", "upscale", "smear", "pixelate")),
)
# Texts of users may say these; those that nothing above trains begin near zero and stay there.
FURTHER_WORDS = """a an the of in on at and with or not no very quite more less most least than as is are it this that
    does do did has have was were be been being can could would should which what where how well made match
    for from by to into its their there these those one two three four five ten scale highly extremely slightly
    fairly somewhat barely poorly strongly fully partly completely visually looks look looking appears like described
    text prompt matches matching mismatched matched consistent inconsistent relevant irrelevant correct wrong faithful
    unfaithful true false real fake realistic unrealistic artificial generated synthetic ai art artwork drawing
    painting render quality image images photo photos picture pictures photograph photographs score rating average fair
    fine decent mediocre acceptable unacceptable best worst better worse superb outstanding amazing nice pretty pleasant
    unpleasant attractive unattractive clear unclear crisp hazy soft harsh grainy pixelated compressed distorted
    undistorted deformed warped artifacts artifact defects defect detail details texture color colour colors colours
    bright dark brightness contrast exposure saturated vivid pale faded low high lower higher aesthetic something
    composition sharpness noise blur content object objects subject scene background natural unnatural"""


@dataclass
class Settings:
    """What a leg of the training is told; see the arguments of `train`."""

    work: Path
    pack: Path
    manifest: Path
    start: Path
    device: str
    threads: int
    processes: int
    workers: int
    pool: int
    batch: int
    rate: float
    seed: int
    steps: int
    hours: float
    cooldown: float
    bf16: bool
    probe_minutes: float
    save_minutes: float
    probe_crops: int
    calibration: int


# ---------------------------------------------------------------- model


def vocabulary(tokenizer: Callable[[list[str]], Tensor], entries: Sequence[packing.Entry]) -> Tensor:
    """Return the sorted token ids of every text that the pre-training says, and of what users may say."""
    texts = {*FURTHER_WORDS.split(), *NOUNS, ".", ",", "a natural background", "above below left right of on with"}
    texts |= all_texts(entries)
    texts |= {word for pair in ANTONYMS for word in pair[:2]} | {word for _, word in LEVELS}
    texts |= {facts[3] for facts in DISTORTIONS.values()}
    texts |= {*scenes.SHAPES, *scenes.COLOURS, *scenes.TEXTURES, *scenes.SIZES, *scenes.RELATIONS}
    return token_rows(tokenizer, sorted(texts))


class Pretraining(nn.Module):
    """The towers, with a token embedding of the used rows only, and the heads that learn from the teacher.

    Args:
        rows: Sorted token ids of the vocabulary, shape (V,).
        tokenizer: open_clip's.
    """

    def __init__(self, rows: Tensor, tokenizer: Callable[[list[str]], Tensor]) -> None:
        super().__init__()
        open_clip = import_open_clip()
        import towers  # noqa: F401  registers the image tower; imported late because timm takes seconds

        open_clip.add_model_config(HERE / f"{NAME}.json")
        self.clip = open_clip.create_model(NAME, pretrained=None)
        self.tokenizer = tokenizer
        embedding = nn.Embedding(len(rows), self.clip.token_embedding.embedding_dim)
        nn.init.normal_(embedding.weight, std=0.02)
        self.clip.token_embedding = embedding
        self.register_buffer("rows", rows)
        width = json.loads((HERE / f"{NAME}.json").read_text())["embed_dim"]
        self.statistics_head = nn.Linear(width, teaching.STATISTICS)
        self.severity_head = nn.Linear(width, len(NAMES))
        self.handcrafted_head = nn.Linear(width, TARGETS["handcrafted"])
        trunk = self.clip.visual.trunk.embed_dim
        for name in ("map16", "map32"):
            self.add_module(f"{name}_head", nn.Linear(trunk, TARGETS[name]))
        for name, channels in TARGETS.items():
            self.register_buffer(f"{name}_mean", torch.zeros(channels))
            self.register_buffer(f"{name}_std", torch.ones(channels))
        self.register_buffer("quality_weight", torch.zeros(teaching.STATISTICS))
        self.register_buffer("quality_place", torch.tensor([0.5, 0.0]))  # mean and deviation

    def tokens(self, pixels: Tensor, slots: Tensor | None = None) -> Tensor:
        """Return the class token and the 64 patches, (B, 65, D), of uint8 crops (B, 3, 128, 128).

        Args:
            pixels: The crops.
            slots: Noise that stands beside them in the first layers, anew in each, shape (layers, n, D).
        """
        mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (MEAN, STD))
        scaled = ((pixels.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
        trunk = self.clip.visual.trunk
        if slots is None:
            return trunk.forward_features(scaled)
        x = trunk.norm_pre(trunk._pos_embed(trunk.patch_embed(scaled)))
        own = x.shape[1]
        for layer, block in enumerate(trunk.blocks):
            if layer < len(slots):
                x = torch.cat([x[:, :own], slots[layer].to(x.dtype).expand(len(x), -1, -1)], 1)
            x = block(x)
        return trunk.norm(x[:, :own])

    def embedding(self, tokens: Tensor) -> Tensor:
        """Return the image features before normalisation, (B, E), as open_clip's tower makes them of the tokens."""
        return self.clip.visual.head(self.clip.visual.trunk.forward_head(tokens))

    def text_features(self, texts: Sequence[str], slots: Tensor | None = None) -> Tensor:
        """Return features before normalisation, (B, E), with noise tokens `slots` (n, D) after SOS if given."""
        return encode_texts(self.clip, self.rows, self.tokenizer, texts, slots)

    def standardise(self, name: str, target: Tensor) -> Tensor:
        """Return a target of the teacher with zero mean and unit deviation by channel, extremes cut."""
        shape = (1, -1, *[1] * (target.ndim - 2))
        mean, std = getattr(self, f"{name}_mean").view(shape), getattr(self, f"{name}_std").view(shape)
        return ((target - mean) / std).clamp(-LIMIT, LIMIT)

    def seen_quality(self, wanted: Tensor) -> Tensor:
        """Return the quality, (B,) in 0..1, that standardised statistics of the teacher (B, C) tell: `calibrate`."""
        mean, deviation = self.quality_place
        return (mean + deviation * wanted @ self.quality_weight).clamp(0, 1)

    def heads(self) -> dict[str, Tensor]:
        """Return what exports of the towers do not hold, by name."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("clip.")}


def target_of(pair: tuple[str, str, str | tuple[str, ...]], batch: dict[str, object], seen_quality: Tensor) -> Tensor:
    """Return how much the better word of a pair of opposites holds for each crop, in 0..1."""
    if pair[2] == QUALITY:
        return seen_quality
    if isinstance(pair[2], str):
        return batch[pair[2]]
    return 1 - batch["severities"][:, [NAMES.index(name) for name in pair[2]]].amax(1) ** 0.8


def losses(
    model: Pretraining,
    batch: dict[str, object],
    rng: np.random.Generator,
    pairs: Sequence[int],
    autocast: object,
    *,
    probing: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the joint loss of a batch, and its parts and predictions."""
    device = batch["pixels"].device
    beside = None if probing else noise_beside(model, rng, device)
    with autocast:
        tokens = model.tokens(batch["pixels"], beside)
    tokens = tokens.float()
    features = model.embedding(tokens)  # (B, E)
    unit = F.normalize(features, dim=-1)
    parts: dict[str, Tensor] = {}
    statistics, wanted = model.statistics_head(features), model.standardise("statistics", batch["statistics"])
    # Every level weighs alike: by the channel, the head's 1,280 would drown those that quality is read from.
    levels = zip(statistics.split(teaching.PARTS, 1), wanted.split(teaching.PARTS, 1), strict=True)
    parts["statistics"] = torch.stack([F.smooth_l1_loss(one, other, beta=0.5) for one, other in levels]).mean()
    for name in ("map16", "map32"):
        target = model.standardise(name, batch[name])
        if target.shape[-1] != 8:
            target = F.interpolate(target, (8, 8), mode="bilinear", align_corners=False)
        answer = getattr(model, f"{name}_head")(tokens[:, 1:])  # (B, 64, C)
        parts[name] = F.smooth_l1_loss(answer, target.flatten(2).transpose(1, 2), beta=0.5)
    parts["handcrafted"] = F.smooth_l1_loss(
        model.handcrafted_head(features), model.standardise("handcrafted", batch["handcrafted"]), beta=0.5
    )
    parts["severity"] = F.mse_loss(model.severity_head(features), batch["severities"])

    scale = model.clip.logit_scale.exp()
    plans = batch["plans"]
    texts = F.normalize(model.text_features([plan.caption for plan in plans]), dim=-1)
    same = torch.tensor([[float(alike(a, b)) for b in plans] for a in plans], device=device)
    same = same / same.sum(1, keepdim=True)
    logits = scale * unit @ texts.T
    parts["contrastive"] = 0.5 * (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same))

    noun = NOUNS[rng.choice(3, p=(0.6, 0.2, 0.2))]
    slots = None
    if rng.random() < 0.5:
        width = model.clip.token_embedding.embedding_dim
        slots = torch.from_numpy(rng.normal(0, 0.02, (PROMPT_SLOTS, width)).astype(np.float32)).to(device)
    chosen = [ANTONYMS[k] for k in pairs]
    poles = [f"{word} {noun}." for pair in chosen for word in pair[:2]]
    cosines = unit @ F.normalize(model.text_features(poles, slots), dim=-1).T  # (B, 2 * pairs)
    answers = scale * (cosines[:, ::2] - cosines[:, 1::2])
    seen_quality = model.seen_quality(wanted)
    for k, pair in enumerate(chosen):
        parts[pair[0]] = F.binary_cross_entropy_with_logits(answers[:, k], target_of(pair, batch, seen_quality))
    # A severity's variance over the crops is about .01, most being absent: the weight brings it to the others' scale.
    total = 6 * parts["statistics"] + parts["map16"] + parts["map32"] + 4 * parts["handcrafted"]
    total = total + 30 * parts["severity"] + 0.25 * parts["contrastive"] + 0.3 * sum(parts[pair[0]] for pair in chosen)
    return total, parts | {"decoded": statistics, "wanted": wanted, "answers": answers}


def noise_beside(model: Pretraining, rng: np.random.Generator, device: torch.device) -> Tensor | None:
    """Return, half of the time, what stands where learned prompts of the image tower will: (layers, 8, D).

    So that those cost nothing at their start. A layer's prompts are told apart by little there: what they have in
    common, a bias, outweighs what they have not.
    """
    if rng.random() < 0.5:
        return None
    layers, width = 1 + int(rng.integers(len(model.clip.visual.trunk.blocks))), model.clip.visual.trunk.embed_dim
    common = rng.normal(0, 0.05, (layers, 1, width))
    own = rng.normal(0, 0.02, (layers, PROMPT_SLOTS, width))
    return torch.from_numpy((common + own).astype(np.float32)).to(device)


def alike(one: Plan, other: Plan) -> bool:
    """Return whether either's caption would be right for both: equal content, and no two words for the quality."""
    return one.content == other.content and (one.word == other.word or not one.word or not other.word)


# ---------------------------------------------------------------- crops and the teacher's answers

_pack: packing.Pack | None = None
_teacher: teaching.Teacher | None = None


def _open_in_worker(path: Path, teacher_folder: Path | None) -> None:
    """Open the pack, and the teacher if a folder is given, once in a worker, which ends when its parent is gone."""
    global _pack, _teacher
    torch.set_num_threads(1)
    obey_parent()
    _pack = packing.Pack(path)
    if teacher_folder is not None:
        _teacher = teaching.Teacher(teacher_folder, "cpu", 1)


def _rows_in_worker(plans: list[Plan], taught: bool) -> tuple[dict[str, np.ndarray], float]:
    """Return the plans' crops, the teacher's answers where it lives here, and the processor seconds that they took."""
    started = time.process_time()
    pixels = np.stack([pixels_of(plan, _pack) for plan in plans])
    answers = answers_for(pixels, _teacher) if taught and _teacher is not None else {}
    return {"pixels": pixels, **answers}, time.process_time() - started


def answers_for(pixels: np.ndarray, teacher: Callable[[np.ndarray], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return everything of TARGETS by name for crops, uint8, (B, 3, 128, 128)."""
    described = [handcrafted.features(np.ascontiguousarray(crop.transpose(1, 2, 0))) for crop in pixels]
    return {**teacher(pixels), "handcrafted": np.stack(described).astype(np.float32)}


class Feed:
    """Batches of a pool: read from the memo, or made and then remembered.

    Args:
        pack: The opened pack.
        planner: Says what each index is.
        memo: Remembers rows.
        teacher: Answers for pixels, for what workers do not answer; None where only pixels are wanted.
        pool: Worker processes that make rows ahead of need, or None to make them in this process.
    """

    def __init__(
        self,
        pack: packing.Pack,
        planner: Planner,
        memo: Memo,
        teacher: Callable[[np.ndarray], dict[str, np.ndarray]] | None,
        pool: ProcessPoolExecutor | None,
    ) -> None:
        self.pack, self.planner, self.memo, self.teacher, self.pool = pack, planner, memo, teacher, pool
        self.begun: dict[int, tuple[Future, list[int]]] = {}
        self.worker_seconds = 0.0

    def ahead(self, indices: Sequence[int]) -> None:
        """Let the workers begin with those of the rows that are not there yet."""
        missing = [int(k) for k in indices if not self.memo.has(k) and int(k) not in self.begun]
        for first in range(0, len(missing), 16) if self.pool is not None else ():
            part = missing[first : first + 16]
            future = self.pool.submit(_rows_in_worker, [self.planner(k) for k in part], self.teacher is not None)
            self.begun |= {k: (future, part) for k in part}

    def rows(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Return the rows, stacked."""
        for index in indices:
            if int(index) in self.begun:
                self._take(int(index))
        found = self.memo.get(indices)
        if found is None:
            missing = [int(k) for k in indices if not self.memo.has(k)]
            self._keep(missing, {"pixels": np.stack([pixels_of(self.planner(k), self.pack) for k in missing])})
            found = self.memo.get(indices)
            if found is None:
                raise OSError(f"{self.memo.path} does not give back what was written to it")
        return found

    def _take(self, index: int) -> None:
        """Wait for the part that an index was given to a worker in, and keep it."""
        future, part = self.begun[index]
        values, seconds = future.result()
        self.worker_seconds += seconds
        self._keep(part, values)
        for k in part:
            del self.begun[k]

    def _keep(self, indices: list[int], values: dict[str, np.ndarray]) -> None:
        if self.teacher is not None and len(values) == 1:
            values |= answers_for(values["pixels"], self.teacher)
        for place, index in enumerate(indices):
            self.memo.put(index, {name: value[place] for name, value in values.items()})

    def batch(self, indices: Sequence[int], device: str, mirror: np.ndarray | None = None) -> dict[str, object]:
        """Return tensors and plans; where `mirror` says so, pixels and maps are mirrored together."""
        rows, plans = self.rows(indices), [self.planner(int(k)) for k in indices]
        if mirror is not None:
            for name in ("pixels", "map16", "map32"):
                rows[name][mirror] = rows[name][mirror][..., ::-1]
        tensors = {name: torch.from_numpy(value).to(device) for name, value in rows.items()}
        tensors = {name: value if name == "pixels" else value.float() for name, value in tensors.items()}
        severities = torch.from_numpy(np.stack([plan.severities for plan in plans])).to(device)
        quality = torch.tensor([plan.quality for plan in plans], dtype=torch.float32, device=device)
        structure = torch.tensor([plan.structure for plan in plans], dtype=torch.float32, device=device)
        return tensors | {"severities": severities, QUALITY: quality, STRUCTURE: structure, "plans": plans}


SHAPES = {
    "pixels": ("u1", (3, CROP, CROP)),
    **teaching.SHAPES,
    "handcrafted": ("f4", (len(handcrafted.NAMES),)),  # single precision: a kurtosis can pass what half holds
}


# ---------------------------------------------------------------- probe


class Probe:
    """What is measured on pictures that were kept from training.

    Args:
        pack: The opened pack.
        settings: Of the leg.
        teacher: The teacher.
        pool: Worker processes, or None.
    """

    def __init__(
        self, pack: packing.Pack, settings: Settings, teacher: Callable, pool: ProcessPoolExecutor | None
    ) -> None:
        planner = Planner(pack, settings.seed, held_out=True)
        memo = Memo(settings.work, planner.key(), settings.probe_crops, SHAPES, teaching.KIND)
        self.feed = Feed(pack, planner, memo, teacher, pool)
        self.crops, self.device, self.batch = settings.probe_crops, settings.device, settings.batch
        self.feed.ahead(range(self.crops))
        whole = Planner(pack, settings.seed, clean=True)
        shapes = {"pixels": SHAPES["pixels"]}
        self.pictures = Feed(pack, whole, Memo(settings.work, whole.key(), len(pack.entries), shapes), None, pool)
        of_class: dict[str, list[int]] = {}
        for number, entry in enumerate(pack.entries):
            if entry.label not in ("", "BACKGROUND_Google"):
                of_class.setdefault(entry.label, []).append(number)
        self.asked = [k for numbers in of_class.values() for k in numbers if pack.entries[k].held_out]
        seen = [[k for k in numbers if not pack.entries[k].held_out] for numbers in of_class.values()]
        self.fitted = [k for numbers in seen for k in numbers[:15]]
        self.labels = [entry.label for entry in pack.entries]
        self.pictures.ahead(self.fitted + self.asked)

    @torch.no_grad()
    def __call__(self, model: Pretraining) -> dict[str, float]:
        """Return losses, R2 of the teacher's statistics, zero-shot SRCC with quality and structure, class accuracy."""
        from scipy.stats import spearmanr

        model.eval()
        sums: dict[str, list[Tensor]] = {}
        for first in range(0, self.crops, self.batch):
            batch = self.feed.batch(range(first, min(first + self.batch, self.crops)), self.device)
            found = losses(model, batch, np.random.default_rng(0), range(len(ANTONYMS)), nullcontext(), probing=True)[1]
            for name, value in {**found, QUALITY: batch[QUALITY], STRUCTURE: batch[STRUCTURE]}.items():
                sums.setdefault(name, []).append(value.cpu())
        joined = {name: torch.cat(sums.pop(name)) for name in ("decoded", "wanted", "answers", QUALITY, STRUCTURE)}
        values = {name: float(torch.stack(parts).mean()) for name, parts in sums.items()}
        error = ((joined["decoded"] - joined["wanted"]) ** 2).mean(0) / joined["wanted"].var(0).clamp_min(1e-6)
        values["statistics_r2"] = float((1 - error).mean())
        values["quality_srcc"] = float(spearmanr(joined["answers"][:, 0], joined[QUALITY])[0])
        values["structure_srcc"] = float(spearmanr(joined["answers"][:, 1], joined[STRUCTURE])[0])
        if self.asked and self.fitted:
            values["class_accuracy"] = self._class_accuracy(model)
        return {name: round(value, 4) for name, value in values.items()}

    def _class_accuracy(self, model: Pretraining) -> float:
        from sklearn.linear_model import RidgeClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        def embed(numbers: list[int]) -> tuple[np.ndarray, list[str]]:
            found = []
            for first in range(0, len(numbers), self.batch):
                pixels = torch.from_numpy(self.pictures.rows(numbers[first : first + self.batch])["pixels"])
                found.append(model.embedding(model.tokens(pixels.to(self.device))).cpu().numpy())
            return np.concatenate(found), [self.labels[k] for k in numbers]

        probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=100.0)).fit(*embed(self.fitted))
        return float(probe.score(*embed(self.asked)))


# ---------------------------------------------------------------- training


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON; atomic."""
    half_done = path.with_name(path.name + ".part")
    half_done.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(half_done, path)


def save_state(path: Path, state: dict[str, object]) -> None:
    """Write the resume state, all of it or nothing."""
    half_done = path.with_name(path.name + ".part")
    with half_done.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(half_done, path)


def check_pack(pack: packing.Pack, manifest: Path) -> None:
    """Raise unless the pack holds the pictures and words that the manifest says, and none besides.

    Raises:
        ValueError: If not.
    """
    known = json.loads(manifest.read_text(encoding="utf-8"))
    strange = {entry.source for entry in pack.entries} - known["sources"].keys()
    if strange or pack.digest != known["listing_sha256"]:
        raise ValueError(
            f"{pack.path} holds {len(pack.entries)} pictures with listing hash {pack.digest}, and {manifest.name} says "
            f"{known['listing_sha256']}: pack it anew from the sources there"
        )


def export(model: Pretraining, folder: Path) -> None:
    """Write weights.safetensors and heads.safetensors, both in half precision."""
    from safetensors.torch import save_file

    write_towers(model.clip, model.rows, folder / "weights.safetensors")
    heads = {
        name: value.detach().cpu().half().contiguous() if value.is_floating_point() else value.cpu().to(torch.int32)
        for name, value in model.heads().items()
        if name != "rows"
    }
    half_done = folder / "heads.safetensors.part"
    save_file(heads, half_done)
    os.replace(half_done, folder / "heads.safetensors")


def start_from(model: Pretraining, folder: Path) -> None:
    """Put what `export` wrote into the model."""
    from safetensors.torch import load_file

    read_towers(model.clip, model.rows, folder / "weights.safetensors")
    heads = {name: value.float() for name, value in load_file(folder / "heads.safetensors").items()}
    missing = model.load_state_dict(heads, strict=False)
    lacking = [name for name in missing.missing_keys if not name.startswith("clip.") and name != "rows"]
    if lacking or missing.unexpected_keys:
        raise ValueError(f"{folder / 'heads.safetensors'} lacks {lacking} and has unknown {missing.unexpected_keys}")


def rate_at(step: int, since: int, hours: float, cooldown: dict[str, float] | None) -> float:
    """Return the share of the peak learning rate: warm-up, then constant, at the end a way down to zero.

    Args:
        step: Done so far.
        since: Step at which the optimiser was new.
        hours: Done so far.
        cooldown: `from` and `hours` of the way down, or None.
    """
    share = min(1.0, (step - since + 1) / WARM_UP)
    if cooldown is not None:
        share *= max(0.0, 1 - (hours - cooldown["from"]) / cooldown["hours"])
    return share


def follow(average: Pretraining, model: Pretraining, keep: float) -> None:
    """Move the average a little towards the model, batch norm's own averages included."""
    with torch.no_grad():
        ours, theirs = average.state_dict(), model.state_dict()
        floating = [name for name in ours if ours[name].is_floating_point()]
        torch._foreach_lerp_([ours[n] for n in floating], [theirs[n] for n in floating], 1 - keep)
        for name in ours.keys() - set(floating):
            ours[name].copy_(theirs[name])


def indices_of(step: int, settings: Settings) -> np.ndarray:
    """Return the rows of the pool that a step learns from: each once in a pass, in an order of that pass's own."""
    in_pass = settings.pool // settings.batch
    turn, place = divmod(step, in_pass)
    if (settings.seed, turn) not in _orders:
        _orders.clear()
        _orders[settings.seed, turn] = np.random.default_rng((settings.seed, turn, 5)).permutation(settings.pool)
    return _orders[settings.seed, turn][place * settings.batch : (place + 1) * settings.batch]


_orders: dict[tuple[int, int], np.ndarray] = {}


def forget_teacher(model: Pretraining) -> None:
    """Begin the heads that answer as the teacher does anew, for a teacher that the weights do not know."""
    for name in teaching.SHAPES:
        getattr(model, f"{name}_head").reset_parameters()


def calibrate(model: Pretraining, feed: Feed, crops: int, names: Collection[str]) -> None:
    """Set what is known of the named targets before the training, from the first crops.

    That is the means and deviations that they are standardised by and, with the teacher's statistics, the weights of
    `weigh_quality`.
    """
    feed.ahead(range(crops))
    rows = [feed.rows(range(first, min(first + 64, crops))) for first in range(0, crops, 64)]
    values = {name: np.concatenate([part[name] for part in rows]).astype(np.float32) for name in names}
    for name, found in values.items():
        axes = (0, *range(2, found.ndim))
        getattr(model, f"{name}_mean").copy_(torch.from_numpy(found.mean(axes)))
        getattr(model, f"{name}_std").copy_(torch.from_numpy(found.std(axes) + 1e-3))
    if "statistics" in values:
        quality = np.array([feed.planner(index).quality for index in range(crops)])
        weigh_quality(model, model.standardise("statistics", torch.from_numpy(values["statistics"])).numpy(), quality)


def weigh_quality(model: Pretraining, wanted: np.ndarray, quality: np.ndarray) -> None:
    """Set the weights with which the teacher's statistics tell the quality that the distortions left.

    They are those of a ridge so strong that it keeps to what very many channels agree on. "Good" learns its answer in
    place of the quality itself. A network that learns the quality itself finds the traces of the script's own
    distortions, which pictures from elsewhere do not have.

    Args:
        model: Its `seen_quality` answers so from here on.
        wanted: Standardised statistics, shape (n, C).
        quality: In 0..1, shape (n,).
    """
    from sklearn.linear_model import Ridge

    weight = Ridge(alpha=8.0 * len(wanted)).fit(wanted, quality).coef_
    weight = (weight / max((wanted @ weight).std(), 1e-6)).astype(np.float32)
    model.quality_weight.copy_(torch.from_numpy(weight))
    model.quality_place.copy_(
        torch.tensor([quality.mean() - quality.std() * float((wanted @ weight).mean()), quality.std()])
    )


def train(
    settings: Settings, teacher: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None
) -> dict[str, object]:
    """Train until told to stop; return the log.

    Args:
        settings: Of this leg.
        teacher: Answers for crops; None builds EfficientNet-Lite0.
    """
    settings.work.mkdir(parents=True, exist_ok=True)
    check_pack(packing.Pack(settings.pack), settings.manifest)
    ranks = lead(settings.processes, _train_part, (settings, teacher)) if settings.processes > 1 else ALONE
    return _train_part(settings, teacher, ranks)


def _train_part(
    settings: Settings, teacher: Callable[[np.ndarray], dict[str, np.ndarray]] | None, ranks: Ranks
) -> dict[str, object]:
    """Train in one of the processes, each of which opens all that it reads; return the log."""
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    pack = packing.Pack(settings.pack)
    taught_here = teacher is not None or settings.device != "cpu"
    teacher = teacher or teaching.Teacher(settings.work, settings.device, settings.threads)
    pool = None
    if settings.workers:
        # On a processor the teacher lives in the workers too: one student's thread and one worker keep two cores busy,
        # where two threads of the student gain little over one.
        folder = None if taught_here else settings.work
        pool = ProcessPoolExecutor(settings.workers, get_context("spawn"), _open_in_worker, (settings.pack, folder))
    try:
        return _train(settings, pack, teacher, pool, ranks)
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _train(
    settings: Settings, pack: packing.Pack, teacher: Callable, pool: ProcessPoolExecutor | None, ranks: Ranks
) -> dict[str, object]:
    device = settings.device
    open_clip = import_open_clip()
    context = json.loads((HERE / f"{NAME}.json").read_text())["text_cfg"]["context_length"]
    tokenizer = open_clip.SimpleTokenizer(context_length=context)
    model = Pretraining(vocabulary(tokenizer, pack.entries), tokenizer).to(device)
    planner = Planner(pack, settings.seed)
    memo = Memo(settings.work, planner.key(), settings.pool, SHAPES, teaching.KIND)
    feed = Feed(pack, planner, memo, teacher, pool)
    state_file, log_file = settings.work / "state.pt", settings.work / "pretraining.json"
    log: dict[str, object] = {"steps": 0, "crops": 0, "hours": 0.0, "wall_hours": 0.0, "legs": [], "held_out": []}
    since, cooldown, state = 0, None, None
    unknown: Collection[str] = ()  # targets that nothing is known of yet
    if state_file.exists():
        state = torch.load(state_file, weights_only=True, map_location=device)
        log, since, cooldown = state["log"], state["since"], state["cooldown"]
        if log["legs"][-1].get("teacher") != teaching.KIND:
            raise ValueError(
                f"{state_file} learned from another teacher: move it away, to begin from what was exported"
            )
        model.load_state_dict(state["model"])
    elif (settings.start / "heads.safetensors").exists():
        start_from(model, settings.start)
        log = json.loads((settings.start / "pretraining.json").read_text())
        since = log["steps"]
        if log["legs"][-1].get("teacher") != teaching.KIND:
            forget_teacher(model)
            unknown = teaching.SHAPES
    else:
        unknown = TARGETS
    if unknown and ranks.first:
        calibrate(model, feed, settings.calibration, unknown)
    give(model, ranks)
    average = copy.deepcopy(model)
    if device == "cpu":
        model.clip.visual.to(memory_format=torch.channels_last)
        for block in model.clip.visual.trunk.blocks:
            # Of so few tokens the fused form's way back takes five times the plain one's time in bfloat16 on a CPU, a
            # quarter of the whole step.
            block.attn.fused_attn = False
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.98))
    if state is not None:
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        del state
    if settings.cooldown and cooldown is None:
        cooldown = {"from": log["hours"], "hours": settings.cooldown / 60}
    log["legs"].append(
        {"from_step": log["steps"], "device": device, "threads": settings.threads, "processes": settings.processes,
         "batch": settings.batch, "pool": settings.pool, "rate": settings.rate, "bf16": settings.bf16,
         "seed": settings.seed, "teacher": teaching.KIND, "pack": pack.kind, "listing_sha256": pack.digest,
         "cooldown": cooldown}
    )  # fmt: skip
    probe = Probe(pack, settings, teacher, pool) if ranks.first else None
    smooth: dict[str, float] = {}

    def note() -> None:
        """Measure, and write the log and what an export needs."""
        found = probe(average)
        recent = {f"train_{name}": round(value, 4) for name, value in smooth.items()}
        log["held_out"].append({key: log[key] for key in ("steps", "crops", "hours", "wall_hours")} | found | recent)
        write_json(log_file, log)
        shown = (*TARGETS, "statistics_r2", "quality_srcc", "structure_srcc", "class_accuracy")
        line = " ".join(f"{name} {found[name]:.3f}" for name in shown if name in found)
        tqdm.write(f"held out at {log['hours']:.2f} h, step {log['steps']}: {line}", file=sys.stderr)

    def keep() -> None:
        held = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
        save_state(state_file, held | {"log": log, "since": since, "cooldown": cooldown})

    stopping: list[int] = []
    if ranks.first and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: stopping.append(number))
    quiet = 1 if sys.stderr.isatty() else 30
    bar = tqdm(
        initial=log["steps"], unit="step", mininterval=quiet, maxinterval=quiet, file=sys.stderr, smoothing=0.1,
        disable=not ranks.first,
    )  # fmt: skip
    saved = time.monotonic()
    mine = slice(ranks.number, None, ranks.count)  # of every batch
    ended = stopped = False
    used, helped = time.process_time(), feed.worker_seconds
    while not stopped and not ended and log["steps"] < settings.steps and log["hours"] < settings.hours:
        wall = time.monotonic()
        step = log["steps"]
        for further in range(step, step + 4):
            feed.ahead(indices_of(further, settings)[mine])
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * rate_at(step, since, log["hours"], cooldown)
        rng = np.random.default_rng((settings.seed, step, 7))
        mirror = rng.random(settings.batch) < 0.5
        batch = feed.batch(indices_of(step, settings)[mine], device, mirror[mine])
        autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=settings.bf16)
        model.train()
        total, parts = losses(model, batch, rng, (0, 1, 2 + int(rng.integers(len(ANTONYMS) - 2))), autocast)
        parts = {name: value.detach() for name, value in parts.items()}
        if not math.isfinite(float(total.detach())):
            raise FloatingPointError(
                f"the loss of step {step} is {float(total.detach())}; start again with a lower --rate"
            )
        optimizer.zero_grad(set_to_none=True)
        (total / ranks.count).backward()
        # On a shared processor the clock says little: there an hour is two of a core's own.
        told = torch.tensor([time.process_time() - used + feed.worker_seconds - helped, float(bool(stopping))])
        used, helped = time.process_time(), feed.worker_seconds
        ranks.add_up([told, *(p.grad for p in parameters if p.grad is not None)])
        seconds, stopped = told.tolist()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.clip.logit_scale.clamp_(0, math.log(100))
        if ranks.first:
            follow(average, model, min(0.999, (step + 1) / (step + 10)))
        for name in (*TARGETS, "severity", "contrastive", "good", "aligned"):
            smooth[name] = smooth.get(name, float(parts[name])) * 0.99 + float(parts[name]) * 0.01
        spent = time.monotonic() - wall
        busy = spent if device != "cpu" else seconds / 2
        before = log["hours"]
        log["steps"], log["crops"] = step + 1, (log["crops"] + settings.batch)
        log["hours"], log["wall_hours"] = before + busy / 3600, log["wall_hours"] + spent / 3600
        bar.update()
        if step % 10 == 0:
            shown = " ".join(f"{name} {value:.3f}" for name, value in smooth.items())
            bar.set_postfix_str(f"{log['hours']:.2f} h {shown}", refresh=False)
        for mark in SNAPSHOTS if ranks.first else ():
            if before < mark <= log["hours"]:
                (settings.work / "snapshots").mkdir(exist_ok=True)
                write_towers(average.clip, average.rows, settings.work / "snapshots" / f"hours-{mark:g}.safetensors")
        ended = cooldown is not None and log["hours"] >= cooldown["from"] + cooldown["hours"]
        every = settings.probe_minutes / 60
        if not ranks.first:
            continue
        if int(log["hours"] / every) > int(before / every):
            note()
        if time.monotonic() - saved > settings.save_minutes * 60:
            keep()
            saved = time.monotonic()
    bar.close()
    if not ranks.first:
        return log
    keep()
    if ended or log["steps"] >= settings.steps or log["hours"] >= settings.hours:
        note()
        keep()
    return log


def main(argv: Sequence[str] | None = None) -> None:
    """Pack, train or export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    work = HERE.parents[1] / ".work" / NAME
    packer = commands.add_parser("pack", help="put the sources' pictures into one file")
    for source, facts in packing.read_manifest().items():
        packer.add_argument(f"--{source}", type=Path, required=True, help=f"git directory of {facts['repository']}")
    packer.add_argument("--out", type=Path, default=work / "pictures.zip")
    packer.add_argument("--megabytes", type=float, default=None, help="upper size, for travel; lowers the quality")
    packer.add_argument("--refuse", type=Path, nargs="*", default=[], help="zips none of whose pictures may be packed")
    trainer = commands.add_parser("train", help="begin or go on")
    trainer.add_argument("--work", type=Path, default=work, help="state, memo and snapshots; about 10 GB")
    trainer.add_argument("--pack", type=Path, default=None, help="the packed pictures (default: in --work)")
    trainer.add_argument("--manifest", type=Path, default=packing.MANIFEST)
    trainer.add_argument("--start", type=Path, default=HERE, help="folder of an export to begin with without a state")
    trainer.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    trainer.add_argument("--threads", type=int, default=1, help="of each process; two gain a sixth over one")
    trainer.add_argument(
        "--processes", type=int, default=1, help="that share every batch, on a CPU; two nearly double the pace"
    )
    trainer.add_argument(
        "--workers", type=int, default=1, help="processes that make crops ahead, with the teacher on a CPU; 0: none"
    )
    trainer.add_argument("--pool", type=int, default=98304, help="crops; a larger pool keeps the smaller one's")
    trainer.add_argument("--batch", type=int, default=64)
    trainer.add_argument("--rate", type=float, default=4e-4, help="peak learning rate")
    trainer.add_argument("--seed", type=int, default=0)
    trainer.add_argument("--steps", type=int, default=10**9, help="end after this many in all")
    trainer.add_argument("--hours", type=float, default=math.inf, help="end after this many in all")
    trainer.add_argument(
        "--cooldown", type=float, default=0, help="minutes in which to lower the rate to zero, and end"
    )
    trainer.add_argument("--no-bf16", dest="bf16", action="store_false", help="image tower in single precision")
    trainer.add_argument("--probe-minutes", type=float, default=10)
    trainer.add_argument("--save-minutes", type=float, default=4)
    trainer.add_argument("--probe-crops", type=int, default=768)
    trainer.add_argument("--calibration", type=int, default=2048, help="crops that standardise the teacher's answers")
    exporter = commands.add_parser("export", help="write weights, heads and log from the state in --work")
    exporter.add_argument("--work", type=Path, default=work)
    exporter.add_argument("--pack", type=Path, default=None)
    exporter.add_argument("--out", type=Path, default=HERE)
    arguments = vars(parser.parse_args(argv))
    command = arguments.pop("command")
    if command == "pack":
        clones = {source: arguments[source] for source in packing.read_manifest()}
        arguments["out"].parent.mkdir(parents=True, exist_ok=True)
        found = packing.pack(clones, arguments["out"], megabytes=arguments["megabytes"], refused=arguments["refuse"])
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return
    arguments["pack"] = arguments["pack"] or arguments["work"] / "pictures.zip"
    if command == "train":
        if arguments["processes"] > 1 and not arguments["device"].startswith("cpu"):
            parser.error("--processes is for a CPU: one process keeps a GPU at work")
        train(Settings(**arguments))
        return
    state = torch.load(arguments["work"] / "state.pt", weights_only=True, map_location="cpu")
    open_clip = import_open_clip()
    context = json.loads((HERE / f"{NAME}.json").read_text())["text_cfg"]["context_length"]
    model = Pretraining(state["average"]["rows"], open_clip.SimpleTokenizer(context_length=context))
    model.load_state_dict(state["average"])
    export(model, arguments["out"])
    write_json(arguments["out"] / "pretraining.json", state["log"])


if __name__ == "__main__":
    main()
