"""The model's parts as params.yaml asks for them: backbone, window rule, model, device."""

from typing import Any

import torch

from pipeline.layout import StudyError
from pipeline.model.backbone import Backbone
from pipeline.model.dcmpln import DCMPLN
from pipeline.model.loading import load_backbone
from pipeline.model.windows import NORMALISATION, WindowRule
from pipeline.params import Params
from pipeline.training.ranks import ALONE, Ranks


def make_backbone(params: Params) -> Backbone:
    """Load the study's backbone."""
    section = params.backbone
    return load_backbone(
        section.name,
        config=section.config,
        pretrained=section.pretrained,
        file=section.file,
        origin=section.origin,
        activation=section.activation,
        tokenizer=section.tokenizer,
        seed=section.seed,
    )


def make_window_rule(params: Params, backbone: Backbone) -> WindowRule:
    """Return how images become windows of the backbone's size.

    Raises:
        StudyError: If images would be resized to less than a window.
    """
    shorter = params.images.shorter_side
    if shorter is not None and shorter < backbone.image_size:
        raise StudyError(
            f"images.shorter_side is {shorter}, and a window of {backbone.name} has {backbone.image_size} pixels: give "
            "that many at least, or null"
        )
    mean, std = NORMALISATION[params.images.normalisation]
    return WindowRule(
        size=backbone.image_size,
        stride=params.images.stride,
        cover=params.images.cover,
        normalisation=params.images.normalisation,
        mean=mean,
        std=std,
        shorter_side=shorter,
    )


def make_model(params: Params, variant: str, backbone: Backbone, seed: int) -> DCMPLN:
    """Build one variant with freshly drawn learned parts; the draw depends on `seed` alone."""
    section, switches = params.model, params.variants[variant]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DCMPLN(
            backbone,
            auxiliary=switches.auxiliary,
            mpa=switches.mpa,
            layer_f=switches.layer_f,
            adapter=switches.adapter,
            prompt_depth=section.prompt_depth,
            prompt_length=section.prompt_length,
            prompt_std=section.prompt_std,
            main_texts=tuple(section.texts.main),
            auxiliary_texts=tuple(section.texts.auxiliary),
            mpa_shared=section.mpa.shared,
            mpa_start=section.mpa.start,
            adapter_reduction=section.adapter.reduction,
            residual_ratio=section.adapter.residual_ratio,
            adapter_shared=section.adapter.shared,
        )


def prepare_torch(device: str, threads: int | None, ranks: Ranks = ALONE) -> torch.device:
    """Set up this process's torch, its threads and on CPUs its determinism, and return the device to compute on.

    Args:
        device: `auto` takes a GPU where there is one, and one a process where several train together.
        threads: CPU threads; None leaves torch's choice. Bits are equal for equal numbers of threads and of processes.
        ranks: The processes that train together.

    Raises:
        StudyError: If `cuda` is asked for and there is none.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise StudyError("train.device is 'cuda', and torch sees no GPU here: use 'auto' or 'cpu'")
    chosen = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    if chosen.type == "cuda" and ranks.count > 1:
        chosen = torch.device("cuda", ranks.local)
    if chosen.type == "cpu":
        torch.use_deterministic_algorithms(True)
    return chosen


def describe_machine(device: torch.device, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Return what run.json says of the machine."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    threads = torch.get_num_threads()
    return {"device": name, "processes": ranks.count, "threads": threads, "torch": torch.__version__}
