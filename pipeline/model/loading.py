"""A backbone from a name and a tag, a weights file, random numbers, or the record in a checkpoint."""

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.files import lfs_pointer_at
from pipeline.model.backbone import Backbone, BackboneError
from pipeline.model.open_clip_shim import import_open_clip
from pipeline.model.record import BackboneRecord, TowersConfig, faults, too_large, without_tokenizer
from pipeline.model.stems import know_stems


def load_backbone(
    name: str,
    *,
    config: str | Path | Mapping[str, Any] | None = None,
    pretrained: str | None = None,
    file: str | Path | None = None,
    origin: Literal["pretrained", "in-house"] | None = None,
    activation: Literal["quickgelu", "gelu"] | None = None,
    tokenizer: str | Path | None = None,
    seed: int = 0,
) -> Backbone:
    """Build a frozen backbone.

    Args:
        name: open_clip's name, such as ViT-B-32.
        config: Of a model that open_clip does not know: a JSON file whose stem is `name`, or the values themselves.
        pretrained: open_clip tag of published weights, such as openai; downloaded on first use.
        file: Weights file (safetensors, or a state dict that torch reads with weights_only).
        origin: Whose weights `file` holds.
        activation: QuickGELU or GELU; None takes the tag's or the config's own.
        tokenizer: Folder with the files of a Hugging Face tokenizer, for towers that have one; None takes it from the
            hub, or from this machine's copy of it, once a text is to be read.
        seed: Of the random weights when neither tag nor file is given.

    Returns:
        The backbone in evaluation mode, without gradients, in float32 on the CPU.

    Raises:
        BackboneError: If the name, tag, file, activation or tokenizer does not fit, or a download is not possible.

    Source: open_clip (Ilharco et al., 2021).
    """
    open_clip = import_open_clip()  # imported here: costs half a second
    if isinstance(config, Mapping):
        _add_config(open_clip, name, config)
    elif config is not None:
        _check_config(name, Path(config))
        open_clip.add_model_config(Path(config))
    model_config = open_clip.get_model_config(name)
    if model_config is None:
        raise BackboneError(f"backbone.name is {name!r}, which open_clip does not know: see open_clip.list_models()")
    if model_config["vision_cfg"].get("timm_model_name"):
        know_stems()
    quick = _activation(open_clip, name, model_config, pretrained, activation)
    if tokenizer is not None:
        _check_tokenizer(name, model_config, Path(tokenizer))

    with torch.random.fork_rng(devices=[]), _quiet_open_clip():
        torch.manual_seed(seed)
        try:
            clip = open_clip.create_model(
                name, pretrained=pretrained, quick_gelu=quick, precision="fp32", weights_only=True
            )
        except RuntimeError as error:
            raise BackboneError(_cannot_load(open_clip, name, pretrained, error)) from error

    vocabulary = None
    if file is not None:
        vocabulary = _load_file(clip, Path(file), open_clip)
    return Backbone(
        clip,
        partial(_tokenizer, name, model_config["text_cfg"], tokenizer),
        name=name,
        pretrained=pretrained if file is None else Path(file).name,
        origin=origin or ("random" if pretrained is None else "pretrained"),
        config=model_config,
        quick_gelu=quick,
        file=None if file is None else str(file),
        seed=seed if pretrained is None and file is None else None,
        vocabulary=vocabulary,
    )


def rebuild_backbone(
    record: Mapping[str, Any], *, file: str | Path | None = None, folders: Sequence[Path] = ()
) -> Backbone:
    """Build the backbone that a checkpoint was trained on, and prove that it is that one.

    Args:
        record: From `Backbone.record`. Checkpoints of earlier versions lack `config`, `quick_gelu`, `file` and `seed`:
            for those the configuration and the file are looked for under `backbones/` in `folders`.
        file: The weights, wherever they lie; None takes the recorded file or tag.
        folders: Where a recorded relative path may start from, in this order.

    Raises:
        BackboneError: If the weights are not at hand, or others than those that the checkpoint was trained with; names
            what is missing.
    """
    if wrong := faults(BackboneRecord, record):
        raise BackboneError(f"the backbone's record says {'; '.join(wrong[:3])}")
    name, config = record["name"], record.get("config")
    tag, recorded = record["pretrained"], record.get("file")
    if config is None:
        found = sorted(path for folder in folders for path in folder.glob(f"backbones/*/{name}.json"))
        if found:
            config = found[0]
            recorded = None if tag is None else str(found[0].parent / tag)
    from_file = file is not None or recorded is not None
    if file is None and recorded is not None:
        places = [folder / recorded for folder in folders] or [Path(recorded)]
        file = next((place for place in places if place.is_file()), None)
        if file is None:
            raise BackboneError(
                f"the weights of backbone {name} are not here: the checkpoint was trained with {recorded}, and there "
                f"is no {' and no '.join(dict.fromkeys(map(str, places)))}. Give the file itself as backbone_file"
            )
    if isinstance(config, Mapping):
        config = _trusted_config(name, config, file, known=not from_file and tag is not None)
    quick = record.get("quick_gelu")
    if quick is None and config is None and from_file:
        raise BackboneError(
            f"the checkpoint was trained with a weights file of {name} by an earlier version, which did not record the "
            "activation: build the backbone by load_backbone and load the checkpoint by load_checkpoint"
        )
    given = {
        "config": config,
        "pretrained": None if from_file else tag,
        "file": file,
        "origin": record["origin"] if from_file else None,
        "activation": None if quick is None else "quickgelu" if quick else "gelu",
        "seed": record.get("seed") or 0,
    }
    try:
        backbone = load_backbone(name, **given)
    except BackboneError as error:
        raise BackboneError(f"the backbone that the checkpoint was trained on cannot be built: {error}") from error
    if backbone.weights_sha256 != record["weights_sha256"]:
        raise BackboneError(
            f"the weights in {file or tag or 'open_clip'} are not those that the checkpoint was trained with: their "
            f"hash is {backbone.weights_sha256}, and the checkpoint says {record['weights_sha256']} (backbone {name}, "
            f"{recorded or tag or 'random weights'}). Give the right file as backbone_file"
        )
    return backbone


def _trusted_config(
    name: str, config: Mapping[str, Any], file: str | Path | None, *, known: bool
) -> dict[str, Any] | None:
    """Return a configuration that a checkpoint brought, once nothing in it can do harm; None: open_clip's own.

    Args:
        name: That the checkpoint gives its towers.
        config: As it came.
        file: The weights, or None.
        known: Whether the weights are those of an open_clip tag, which fixes the towers' size.
    """
    shipped = Path(import_open_clip().__file__).with_name("model_configs") / f"{name}.json"
    if shipped.is_file():
        own = json.loads(shipped.read_text(encoding="utf-8"))
        if not isinstance(config.get("text_cfg"), Mapping) or without_tokenizer(own) != without_tokenizer(config):
            raise BackboneError(f"the checkpoint calls its towers {name}, and they are not those of open_clip's {name}")
    if wrong := faults(TowersConfig, config):
        raise BackboneError(f"the configuration of {name} in the checkpoint says {'; '.join(wrong[:3])}")
    within = 0
    if trunk := config["vision_cfg"].get("timm_model_name"):
        import timm

        know_stems()
        if not timm.is_model(trunk):
            raise BackboneError(f"the checkpoint's image tower is {trunk!r}, which timm does not know")
        with torch.device("meta"):  # counts without taking memory
            within = sum(part.numel() for part in timm.create_model(trunk, pretrained=False).parameters())
    if not known and (reason := too_large(config, None if file is None else Path(file).stat().st_size, within)):
        raise BackboneError(f"the configuration of {name} in the checkpoint is not built: {reason}")
    return None if shipped.is_file() else without_tokenizer(config)


def _add_config(open_clip: Any, name: str, config: Mapping[str, Any]) -> None:
    """Make a configuration known to open_clip, which reads files alone."""
    if open_clip.get_model_config(name) == config:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.json")
        path.write_text(json.dumps(config), encoding="utf-8")
        open_clip.add_model_config(path)


def _check_config(name: str, config: Path) -> None:
    if not config.is_file():
        raise BackboneError(f"backbone.config is {config}, which does not exist")
    if config.stem != name:
        raise BackboneError(f"backbone.config is {config.name}, and backbone.name {name!r}: name it {config.stem!r}")


def _activation(
    open_clip: Any,
    name: str,
    config: dict[str, Any],
    pretrained: str | None,
    activation: str | None,
) -> bool:
    """Return whether the towers use QuickGELU; a tag's own activation is not negotiable."""
    chosen = None if activation is None else activation == "quickgelu"
    if pretrained is None:
        return bool(config.get("quick_gelu", False)) if chosen is None else chosen
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    if not tag:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise BackboneError(f"backbone.pretrained is {pretrained!r}, which {name} does not have; it has: {known}")
    trained_with = bool(tag.get("quick_gelu", False))
    if chosen is not None and chosen != trained_with:
        right = "quickgelu" if trained_with else "gelu"
        raise BackboneError(
            f"backbone.activation is {activation!r}, but {name} {pretrained} was trained with {right!r}: "
            "use that, or null"
        )
    return trained_with


def _check_tokenizer(name: str, config: Mapping[str, Any], folder: Path) -> None:
    if not config["text_cfg"].get("hf_tokenizer_name"):
        raise BackboneError(f"backbone.tokenizer is {folder}, and {name} has CLIP's own tokenizer: say null")
    if not (folder / "tokenizer_config.json").is_file():
        raise BackboneError(
            f"backbone.tokenizer is {folder}, which holds no tokenizer_config.json: name the folder that holds it, and "
            "tokenizer.json beside it"
        )


def _tokenizer(name: str, text: Mapping[str, Any], folder: str | Path | None) -> Any:
    """Return a model's open_clip tokenizer, read from a folder if one is given."""
    import open_clip  # not an argument: a backbone that held a module could not be copied

    source = text.get("hf_tokenizer_name", name)
    try:
        with _quiet_open_clip():
            if folder is None:
                return open_clip.get_tokenizer(name)
            return open_clip.tokenizer.HFTokenizer(
                str(folder), text.get("context_length", 77), tokenizer_mode=text.get("tokenizer_mode"),
                trust_remote_code=False, local_files_only=True, **text.get("tokenizer_kwargs", {}),
            )  # fmt: skip
    except ImportError as error:
        package = error.name or "transformers"
        raise BackboneError(
            f"the tokenizer of {name} needs a package that is missing ({package}): pip install {package}"
        ) from error
    except Exception as error:
        # Hugging Face's readers raise whatever their parsers do, and say it in paragraphs.
        if folder is not None:
            raise BackboneError(
                f"backbone.tokenizer is {folder}, whose files cannot be read as a tokenizer ({type(error).__name__})"
            ) from error
        if not isinstance(error, OSError):
            raise
        raise BackboneError(
            f"the tokenizer {source} of {name} is neither here nor downloadable: fetch its tokenizer.json and "
            "tokenizer_config.json on a machine with network, and name their folder under backbone.tokenizer"
        ) from error


def _cannot_load(open_clip: Any, name: str, pretrained: str | None, error: Exception) -> str:
    if pretrained is None:
        return f"open_clip cannot build {name}: {error}"
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    where = tag.get("hf_hub") or tag.get("url") or "its published address"
    return (
        f"the weights of {name} {pretrained} could not be downloaded ({type(error.__cause__ or error).__name__}). "
        f"Fetch them from {where} on a machine with network, set backbone.file to the file, "
        "backbone.pretrained to null, backbone.origin to pretrained and backbone.activation to "
        f"{'quickgelu' if tag.get('quick_gelu') else 'gelu'}"
    )


def _load_file(clip: nn.Module, file: Path, open_clip: Any) -> Tensor | None:
    """Load a weights file into the towers; return the ids of the vocabulary that it holds, or None for all of it.

    A reduced vocabulary is stored as `token_embedding.rows` (ids) beside the rows themselves; the others stay zero.
    """
    state = _state_of(file, open_clip)
    rows = state.pop("token_embedding.rows", None)
    if rows is not None:
        full = torch.zeros_like(clip.state_dict()["token_embedding.weight"])
        full[rows.long()] = state["token_embedding.weight"].float()
        state["token_embedding.weight"] = full
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    expected = clip.state_dict()
    state = {key: value for key, value in state.items() if key in expected or not _is_bookkeeping(key)}
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    wrong = [key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape]
    if missing or extra or wrong:
        what = [
            f"{label} {', '.join(keys[:3])}{' ...' if len(keys) > 3 else ''}"
            for label, keys in (("lacks", missing), ("has unknown", extra), ("has other shapes of", wrong))
            if keys
        ]
        raise BackboneError(f"{file} does not fit the towers: it {'; it '.join(what)}. Check backbone.name")
    clip.load_state_dict(state)
    return rows


def _state_of(file: Path, open_clip: Any) -> dict[str, Tensor]:
    """Return the tensors of a weights file by name.

    Raises:
        BackboneError: If the file is missing, cut off, damaged, or of another kind.
    """
    if not file.is_file():
        raise BackboneError(f"backbone.file is {file}, which does not exist")
    try:
        # The layouts in circulation (safetensors, plain, training, TorchScript archive), without running their code.
        state = open_clip.factory.load_state_dict(str(file), weights_only=True)
    except MemoryError:
        raise
    except PermissionError:
        raise BackboneError(f"backbone.file is {file}, which may not be read: permission denied") from None
    except Exception as error:  # the readers raise nearly anything; torch's advice would run the file's own code
        wrong = (
            lfs_pointer_at(file) or f"is cut off, damaged or no file of weights ({type(error).__name__}): fetch it anew"
        )
        raise BackboneError(f"backbone.file is {file}, which {wrong}") from error
    if wrong := [str(key) for key, value in state.items() if not isinstance(value, Tensor)]:
        raise BackboneError(f"backbone.file is {file}, which holds no tensor as {', '.join(wrong[:3])}: no weights")
    return state


def _is_bookkeeping(key: str) -> bool:
    """OpenAI's archives carry sizes beside the weights."""
    return key in {"input_resolution", "context_length", "vocab_size"}


@contextmanager
def _quiet_open_clip() -> Iterator[None]:
    """Silence open_clip's log lines: `No pretrained weights` is our choice here, and a failed load raises."""
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
