"""The frozen CLIP, and the only place that knows open_clip's inside.

`load_backbone` makes a `Backbone` from an open_clip name and a tag, a weights file, or random numbers, and
`rebuild_backbone` makes the one that a checkpoint speaks of. A `Backbone` encodes images and texts, with learned
prompts in the transformer layers or without: without, its features are open_clip's own.

Imports pipeline.torchvision_shim.
"""

import hashlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.torchvision_shim import ensure_torchvision_imports

Origin = Literal["random", "in-house", "pretrained"]

# (mean, std) per channel of pixel values in 0..1. `imagenet` is what the predecessor feeds CLIP.
NORMALISATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class BackboneError(ValueError):
    """A backbone that cannot be built, loaded or prompted."""


class LayerWeights(NamedTuple):
    """One transformer layer of the image tower: x += s_1 MHA(LN_1 x), then x += s_2 MLP(LN_2 x).

    Attributes:
        norm_1, norm_2: Weight and bias (D,) and epsilon of the layer norms.
        attention_in: Weight (3 D, D) and bias (3 D,) of query, key and value, stacked.
        attention_out: Weight (D, D) and bias (D,).
        expand, contract: Weight and bias of the MLP's two maps.
        quick: Whether the MLP's activation is QuickGELU, else GELU.
        scale_1, scale_2: Layer scale (D,), or None.
        heads: Attention heads.
    """

    norm_1: tuple[Tensor, Tensor, float]
    attention_in: tuple[Tensor, Tensor]
    attention_out: tuple[Tensor, Tensor]
    norm_2: tuple[Tensor, Tensor, float]
    expand: tuple[Tensor, Tensor]
    contract: tuple[Tensor, Tensor]
    quick: bool
    scale_1: Tensor | None
    scale_2: Tensor | None
    heads: int


class ImageTowerWeights(NamedTuple):
    """The image tower as plain tensors.

    Attributes:
        patches: Weight (D, 3, P, P) of the patch embedding, which has no bias.
        class_token: Shape (D,).
        positions: Shape (1 + patches, D).
        norm_pre: Weight, bias and epsilon before the first layer, or None.
        layers: In order.
        norm_post: Weight, bias and epsilon after the last layer.
        projection: Shape (D, E).
    """

    patches: Tensor
    class_token: Tensor
    positions: Tensor
    norm_pre: tuple[Tensor, Tensor, float] | None
    layers: tuple[LayerWeights, ...]
    norm_post: tuple[Tensor, Tensor, float]
    projection: Tensor


class Backbone(nn.Module):
    """Two frozen CLIP towers that accept deep prompts.

    Attributes:
        name: open_clip's name of the model.
        pretrained: Tag or file name of the weights, or None for random ones.
        origin: Whose weights: `random`, `in-house` or `pretrained`.
        weights_sha256: Hash of every tensor that was really loaded.
        config: The open_clip configuration of the towers, as plain values.
        quick_gelu: Whether the towers use QuickGELU, whatever `config` says.
        file: Path of the weights as it was given, or None for a tag or random weights.
        seed: Of random weights, else None.
        image_size: Side of the square input in pixels.
        patch_size: Side of a patch in pixels.
        image_width, text_width: Widths D_v, D_t of the towers.
        embed_dim: Width E of the joint embedding.
        image_layers, text_layers: Transformer layers of the towers.
    """

    def __init__(
        self,
        clip: nn.Module,
        tokenizer: Any,
        *,
        name: str,
        pretrained: str | None,
        origin: Origin,
        config: dict[str, Any],
        quick_gelu: bool,
        file: str | None = None,
        seed: int | None = None,
        vocabulary: Tensor | None = None,
    ) -> None:
        """Freeze and wrap an open_clip model.

        Args:
            clip: `open_clip.CLIP`, or `CustomTextCLIP` with the standard towers.
            tokenizer: The model's open_clip tokenizer.
            name: open_clip's name of the model.
            pretrained: Tag or file name of the weights; None for random ones.
            origin: Whose weights these are.
            config: The open_clip configuration of the towers.
            quick_gelu: Whether they use QuickGELU.
            file: Path of the weights as it was given.
            seed: Of random weights.
            vocabulary: Token ids that have an embedding, shape (V,); None means all.

        Raises:
            BackboneError: If the towers are not the standard ViT and causal text transformer.
        """
        super().__init__()
        _refuse_other_towers(clip, name)
        self.visual = clip.visual
        text = clip.text if hasattr(clip, "text") else clip  # CustomTextCLIP keeps its text tower apart
        self.text_transformer = text.transformer
        self.token_embedding = text.token_embedding
        self.text_positions = text.positional_embedding
        self.ln_final = text.ln_final
        self.text_projection = text.text_projection
        self.logit_scale = clip.logit_scale
        self.register_buffer("causal_mask", text.attn_mask.clone(), persistent=False)
        self.tokenizer = tokenizer
        self.vocabulary = None if vocabulary is None else frozenset(vocabulary.tolist())
        self.requires_grad_(False)
        super().train(False)

        self.name, self.pretrained, self.origin = name, pretrained, origin
        self.config, self.quick_gelu, self.file, self.seed = config, quick_gelu, file, seed
        self.image_size: int = self.visual.image_size[0]
        self.patch_size: int = self.visual.patch_size[0]
        self.image_width: int = self.visual.conv1.out_channels
        self.text_width: int = self.token_embedding.embedding_dim
        self.embed_dim: int = self.visual.output_dim
        self.image_layers = len(self.visual.transformer.resblocks)
        self.text_layers = len(self.text_transformer.resblocks)
        self.context_length: int = self.text_positions.shape[0]
        self.weights_sha256 = _hash_tensors(clip.state_dict())

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in evaluation mode: the towers are frozen, whatever the model around them does."""
        return super().train(False)

    def record(self) -> dict[str, Any]:
        """Return what a checkpoint must know to refuse another backbone, and to build this one anew."""
        keys = (
            "name", "pretrained", "weights_sha256", "origin", "image_size", "patch_size",
            "config", "quick_gelu", "file", "seed",
        )  # fmt: skip
        return {key: getattr(self, key) for key in keys}

    def tokenize(self, texts: Sequence[str], slots: int = 0) -> Tensor:
        """Turn texts into token ids with room for prompts, cut at the longest text's EOT token.

        Causal attention keeps tokens after EOT from changing the EOT feature, so cutting them is exact.

        Args:
            texts: T texts.
            slots: Prompt slots n between the SOS token and the first word.

        Returns:
            Token ids [SOS][n slots][words][EOT][padding], shape (T, longest), int64; slots hold 0.

        Raises:
            BackboneError: If a text does not fit the context, or uses a token that the weights have no embedding for.
        """
        rows = [self._encode(text) for text in texts]
        for text, row in zip(texts, rows, strict=True):
            if len(row) + slots > self.context_length:
                raise BackboneError(
                    f"text {text!r} takes {len(row)} tokens and {slots} prompt slots, and {self.name} has room for "
                    f"{self.context_length}: shorten the text or model.prompt_length"
                )
            unknown = [] if self.vocabulary is None else [token for token in row if token not in self.vocabulary]
            if unknown:
                words = ", ".join(repr(self.tokenizer.decode([token]).strip()) for token in unknown)
                raise BackboneError(
                    f"text {text!r} uses {words}, which the reduced vocabulary of {self.name} ({self.pretrained}) does "
                    "not hold: use other words, or a backbone with its full vocabulary"
                )
        longest = max(len(row) for row in rows) + slots
        padded = [row[:1] + [0] * slots + row[1:] + [0] * (longest - slots - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.long, device=self.text_positions.device)

    def _encode(self, text: str) -> list[int]:
        return [self.tokenizer.sot_token_id, *self.tokenizer.encode(text), self.tokenizer.eot_token_id]

    def encode_text(self, tokens: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Encode texts, with prompts in the first L layers.

        Args:
            tokens: Token ids, shape (T, N), from `tokenize` with the same number of slots.
            prompts: Learned prompts, shape (L, n, D_t): the first fills the slots at the input, each later one replaces
                the slots' outputs before its layer. None: plain CLIP.

        Returns:
            Text features at the EOT token, after projection, not normalised, shape (T, E).

        Source: deep prompting as in MaPLe (Khattak et al., CVPR 2023), text side.
        """
        depth, slots = (0, 0) if prompts is None else prompts.shape[:2]
        x = self.token_embedding(tokens)  # (T, N, D_t)
        if prompts is not None:
            x = torch.cat([x[:, :1], prompts[0].expand(len(x), -1, -1), x[:, 1 + slots :]], dim=1)
        x = x + self.text_positions[: x.shape[1]]
        mask = self.causal_mask[: x.shape[1], : x.shape[1]]
        for layer, block in enumerate(self.text_transformer.resblocks):
            if 0 < layer < depth:
                x = torch.cat([x[:, :1], prompts[layer].expand(len(x), -1, -1), x[:, 1 + slots :]], dim=1)
            x = block(x, attn_mask=mask)
        end = (tokens == self.tokenizer.eot_token_id).int().argmax(dim=1)
        x = self.ln_final(x[torch.arange(len(x), device=x.device), end])  # (T, D_t)
        if isinstance(self.text_projection, nn.Linear):
            return self.text_projection(x)
        return x if self.text_projection is None else x @ self.text_projection  # (T, E)

    def encode_image(self, images: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Encode images, with prompts in the first L layers.

        Args:
            images: Normalised pixels, shape (B, 3, H, W) with H = W = `image_size`.
            prompts: Learned prompts, shape (L, n, D_v), after the patches: [CLS][patches][n slots]. None: plain CLIP.

        Returns:
            Image features of the class token, after projection, not normalised, shape (B, E).

        Source: VPT-Deep (Jia et al., ECCV 2022). As in MaPLe's code the first prompts pass `ln_pre` with the patches,
            and carry no positional embedding.
        """
        depth = 0 if prompts is None else len(prompts)
        x = self.visual._embeds(images)  # (B, 1 + patches, D_v), after ln_pre
        body = x.shape[1]
        if prompts is not None:
            x = torch.cat([x, self.visual.ln_pre(prompts[0]).expand(len(x), -1, -1)], dim=1)
        for layer, block in enumerate(self.visual.transformer.resblocks):
            if 0 < layer < depth:
                x = torch.cat([x[:, :body], prompts[layer].expand(len(x), -1, -1)], dim=1)
            x = block(x)
        pooled, _ = self.visual._pool(x[:, :body])  # (B, D_v)
        return pooled if self.visual.proj is None else pooled @ self.visual.proj  # (B, E)

    def image_tower(self) -> ImageTowerWeights | None:
        """Return the image tower as plain tensors, or None where its layers are not CLIP's plain ones."""
        layers = [_layer_weights(block) for block in self.visual.transformer.resblocks]
        pre = self.visual.ln_pre
        plain = self.visual.conv1.bias is None and isinstance(pre, nn.LayerNorm | nn.Identity)
        if not plain or None in layers:
            return None
        return ImageTowerWeights(
            patches=self.visual.conv1.weight,
            class_token=self.visual.class_embedding,
            positions=self.visual.positional_embedding,
            norm_pre=_norm(pre) if isinstance(pre, nn.LayerNorm) else None,
            layers=tuple(layers),
            norm_post=_norm(self.visual.ln_post),
            projection=self.visual.proj,
        )


def _norm(norm: nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
    return norm.weight, norm.bias, norm.eps


def _layer_weights(block: nn.Module) -> LayerWeights | None:
    """Return one layer's weights, or None if it is not open_clip's plain residual attention block."""
    from open_clip.transformer import QuickGELU, ResidualAttentionBlock

    if type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
        return None
    attention, expand, activation, contract = block.attn, block.mlp.c_fc, block.mlp.gelu, block.mlp.c_proj
    quick = isinstance(activation, QuickGELU)
    if not quick and not (type(activation) is nn.GELU and activation.approximate == "none"):
        return None
    if attention.in_proj_weight is None or attention.bias_k is not None or attention.add_zero_attn:
        return None
    scales = [None if isinstance(scale, nn.Identity) else scale.gamma for scale in (block.ls_1, block.ls_2)]
    return LayerWeights(
        norm_1=_norm(block.ln_1),
        attention_in=(attention.in_proj_weight, attention.in_proj_bias),
        attention_out=(attention.out_proj.weight, attention.out_proj.bias),
        norm_2=_norm(block.ln_2),
        expand=(expand.weight, expand.bias),
        contract=(contract.weight, contract.bias),
        quick=quick,
        scale_1=scales[0],
        scale_2=scales[1],
        heads=attention.num_heads,
    )


def load_backbone(
    name: str,
    *,
    config: str | Path | Mapping[str, Any] | None = None,
    pretrained: str | None = None,
    file: str | Path | None = None,
    origin: Literal["pretrained", "in-house"] | None = None,
    activation: Literal["quickgelu", "gelu"] | None = None,
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
        seed: Of the random weights when neither tag nor file is given.

    Returns:
        The backbone in evaluation mode, without gradients, in float32 on the CPU.

    Raises:
        BackboneError: If the name, tag, file or activation does not fit, or a download is not possible.

    Source: open_clip (Ilharco et al., 2021).
    """
    ensure_torchvision_imports()
    import open_clip  # imported here: costs two seconds, and needs the line above

    if isinstance(config, Mapping):
        _add_config(open_clip, name, config)
    elif config is not None:
        _check_config(name, Path(config))
        open_clip.add_model_config(Path(config))
    model_config = open_clip.get_model_config(name)
    if model_config is None:
        raise BackboneError(f"backbone.name is {name!r}, which open_clip does not know: see open_clip.list_models()")
    quick = _activation(open_clip, name, model_config, pretrained, activation)

    with torch.random.fork_rng(devices=[]), _quiet_open_clip():
        torch.manual_seed(seed)
        try:
            clip = open_clip.create_model(
                name, pretrained=pretrained, quick_gelu=quick, precision="fp32", weights_only=True
            )
        except RuntimeError as error:
            raise BackboneError(_cannot_load(open_clip, name, pretrained, error)) from error
    try:
        with _quiet_open_clip():
            tokenizer = open_clip.get_tokenizer(name)
    except ImportError as error:
        raise BackboneError(f"the tokenizer of {name} needs a package that is missing: {error}") from error
    vocabulary = None
    if file is not None:
        vocabulary = _load_file(clip, Path(file), open_clip)
    return Backbone(
        clip,
        tokenizer,
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
    if not file.is_file():
        raise BackboneError(f"backbone.file is {file}, which does not exist")
    rows: Tensor | None = None
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(file)
        rows = state.pop("token_embedding.rows", None)
        if rows is not None:
            full = torch.zeros_like(clip.state_dict()["token_embedding.weight"])
            full[rows.long()] = state["token_embedding.weight"].float()
            state["token_embedding.weight"] = full
    else:
        # open_clip reads the layouts in circulation (plain, training, TorchScript archive) without running their code.
        state = open_clip.factory.load_state_dict(str(file), weights_only=True)
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


def _is_bookkeeping(key: str) -> bool:
    """OpenAI's archives carry sizes beside the weights."""
    return key in {"input_resolution", "context_length", "vocab_size"}


def _refuse_other_towers(clip: nn.Module, name: str) -> None:
    from open_clip.transformer import TextTransformer, Transformer, VisionTransformer

    text = clip.text if hasattr(clip, "text") else clip
    visual = clip.visual
    if not isinstance(visual, VisionTransformer):
        raise BackboneError(
            f"{name} has a {type(visual).__name__} image tower; prompts need open_clip's VisionTransformer"
        )
    pool = getattr(visual, "pool_type", None)
    if visual.attn_pool is not None or pool != "tok" or visual.proj is None:
        raise BackboneError(f"{name} pools its image tokens by {pool!r} or attention; prompts need a class token")
    plain = isinstance(text, TextTransformer) or isinstance(getattr(text, "transformer", None), Transformer)
    pools_at_eot = getattr(text, "text_pool_type", getattr(text, "pool_type", None)) in ("argmax", "eos")
    if not plain or getattr(text, "cls_emb", None) is not None or text.attn_mask is None or not pools_at_eot:
        raise BackboneError(f"{name} has no causal text tower read at the EOT token, which prompts need")


def _hash_tensors(state: dict[str, Tensor]) -> str:
    """Return the sha256 over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(json.dumps([key, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy() if tensor.numel() else b"")
    return digest.hexdigest()


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
