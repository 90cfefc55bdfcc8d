"""DCMPLN, top to bottom, in the paper's order: prompts, MPA, Layer F, Image Adapter, score.

Paper: Lu et al., "A Deep Cross-modal Prompt Learning Network for Artificial Intelligence Generated Image Quality
Assessment", Displays 91 (2025) 103208. No code was published; where the paper leaves a choice open, the choice made
here is named as such. Notation: B batch; L prompt depth; n prompt length; D_v, D_t tower widths; E joint embedding.

This is the plain statement of the model.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pipeline.errors import AgiqaError
from pipeline.model.backbone import Backbone

HEAD_WIDTH = 64


class Constants(NamedTuple):
    """Everything that the score needs and that does not depend on the image.

    Attributes:
        visual_prompts: Shape (L, n, D_v).
        text_features: Unit length, the better text first, shape (2, E).
    """

    visual_prompts: Tensor
    text_features: Tensor


class PromptLearner(nn.Module):
    """Learned prompts of one task at each of `depth` layers, init N(0, std^2).

    Shapes: text (depth, n, D_t), visual (depth, n, D_v).

    Source: CoOp (Zhou et al., IJCV 2022) and VPT-Deep (Jia et al., ECCV 2022).
    """

    def __init__(self, depth: int, length: int, text_width: int, image_width: int, std: float) -> None:
        """Draw the prompts from torch's global generator."""
        super().__init__()
        self.text = nn.Parameter(std * torch.randn(depth, length, text_width))
        self.visual = nn.Parameter(std * torch.randn(depth, length, image_width))


class CrossModalBranch(nn.Module):
    """One side of MPA: own prompts attend to themselves, asked by the other side's prompts.

        H    = P + MHA(q = LN_1(W P_other), k = v = LN_1(P))
        next = H + MLP(LN_2(H))

    Source: paper, Multi-modal Prompt Attention. LN_1 serves query, key and value; the MLP is 4x wide with QuickGELU
        (our reading of "as in CLIP").
    """

    def __init__(self, width: int, other_width: int) -> None:
        """Build the side of width `width`; heads are 64 wide."""
        super().__init__()
        if width % HEAD_WIDTH:
            raise AgiqaError(f"MPA needs tower widths in multiples of {HEAD_WIDTH}, and this tower is {width} wide")
        self.project = nn.Linear(other_width, width)
        self.norm_1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, width // HEAD_WIDTH, batch_first=True)
        self.norm_2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """Return the next layer's prompts, shape (n, width), from own (n, width) and other (n, other_width)."""
        query, key = self.norm_1(self.project(other))[None], self.norm_1(own)[None]  # (1, n, width)
        hidden = own + self.attention(query, key, key, need_weights=False)[0][0]
        wide = self.expand(self.norm_2(hidden))
        return hidden + self.contract(wide * torch.sigmoid(1.702 * wide))  # QuickGELU

    def start_as_identity(self) -> None:
        """Zero the output maps of attention and MLP, so that the next prompts are the own ones until it has learned."""
        for output in (self.attention.out_proj, self.contract):
            nn.init.zeros_(output.weight)
            nn.init.zeros_(output.bias)


class MultimodalPromptAttention(nn.Module):
    """MPA: prompts of depth l from those of depth l-1; both sides read the old prompts.

    Deviation: CMPA (Liu et al., ACL Findings 2023), from which MPA descends, averages encoder tokens over the batch in
    its public code, so that a prediction depends on its batch neighbours. Here MPA reads prompts only.

    Source: paper, Multi-modal Prompt Attention.
    """

    def __init__(self, text_width: int, image_width: int) -> None:
        """Build both sides."""
        super().__init__()
        self.visual = CrossModalBranch(image_width, text_width)
        self.text = CrossModalBranch(text_width, image_width)

    def forward(self, text: Tensor, visual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next (text (n, D_t), visual (n, D_v)) prompts."""
        return self.text(text, visual), self.visual(visual, text)


class LayerF(nn.Module):
    """Layer F: the main task's visual prompts from its own and the auxiliary task's, one linear map a depth.

        F[l] = W_l [P_v'[l] ; P_v[l]] + b_l

    Source: CLIP-AGIQA (Fu et al., IEEE SPL 2024), kept by the paper.
    """

    def __init__(self, depth: int, image_width: int) -> None:
        """Build `depth` maps 2 D_v -> D_v."""
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(2 * image_width, image_width) for _ in range(depth))

    def forward(self, main: Tensor, auxiliary: Tensor) -> Tensor:
        """Return the fused prompts, shape (L, n, D_v), from two of the same shape."""
        joined = torch.cat([main, auxiliary], dim=-1)  # (L, n, 2 D_v)
        return torch.stack([fuse(prompts) for fuse, prompts in zip(self.maps, joined, strict=True)])


class ImageAdapter(nn.Module):
    """Image Adapter: f' = a ReLU(W_2 ReLU(W_1 f)) + (1 - a) f.

    Source: CLIP-Adapter (Gao et al., IJCV 2024); paper, a = 0.2.
    """

    def __init__(self, embed_dim: int, reduction: int, residual_ratio: float) -> None:
        """Build W_1: E -> E / reduction and W_2 back, without biases."""
        super().__init__()
        self.down = nn.Linear(embed_dim, embed_dim // reduction, bias=False)
        self.up = nn.Linear(embed_dim // reduction, embed_dim, bias=False)
        self.residual_ratio = residual_ratio

    def forward(self, features: Tensor) -> Tensor:
        """Return adapted features, shape (B, E)."""
        adapted = F.relu(self.up(F.relu(self.down(features))))
        return self.residual_ratio * adapted + (1 - self.residual_ratio) * features


def antonym_score(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """Return how much closer images are to the better text than to the worse one.

    Args:
        image_features: Shape (B, E), of any length.
        text_features: Unit length, the better text first, shape (2, E).
        logit_scale: CLIP's, before its exponential, a scalar.

    Returns:
        Scores in (0, 1), higher is better, shape (B,).

    Source: CLIP-IQA (Wang et al., AAAI 2023): a softmax over the two cosines.
    """
    logits = logit_scale.exp() * F.normalize(image_features, dim=-1) @ text_features.t()  # (B, 2)
    return logits.softmax(dim=-1)[:, 0]


def score_features(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, adapter: ImageAdapter | None = None
) -> Tensor:
    """Return scores in (0, 1), shape (B,), of image features: adapter, then antonym score. Every score is made here.

    It is made in float32 even where the towers run in bfloat16, whose logits of up to 100 would blur it.

    Args:
        image_features: Shape (B, E), of any length and floating type.
        text_features: Unit length, the better text first, shape (2, E).
        logit_scale: CLIP's, before its exponential, a scalar.
        adapter: The task's Image Adapter, or None.
    """
    with torch.autocast(image_features.device.type, enabled=False):
        features = image_features.float()
        features = features if adapter is None else adapter(features)
        return antonym_score(features, text_features.float(), logit_scale)


class DCMPLN(nn.Module):
    """Deep cross-modal prompt learning network: two tasks on one pair of frozen towers.

    The switches give the paper's ablations and the predecessor CLIP-AGIQA (auxiliary and Layer F, without MPA and
    adapter). Only what is named learned trains; `backbone` stays frozen.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        auxiliary: bool = True,
        mpa: bool = True,
        layer_f: bool = True,
        adapter: bool = True,
        prompt_depth: int = 12,
        prompt_length: int = 8,
        prompt_std: float = 0.02,
        main_texts: tuple[str, str] = ("good photo.", "bad photo."),
        auxiliary_texts: tuple[str, str] = ("aligned photo.", "misaligned photo."),
        mpa_shared: bool = True,
        mpa_start: Literal["random", "identity"] = "random",
        adapter_reduction: int = 4,
        residual_ratio: float = 0.2,
        adapter_shared: bool = False,
    ) -> None:
        """Build the learned parts; their values come from torch's global generator.

        Args:
            backbone: The frozen towers.
            auxiliary: Learn the alignment task as well.
            mpa: Make deeper auxiliary prompts by MPA; without it they are learned freely at every depth.
            layer_f: Fuse the auxiliary visual prompts into the main ones.
            adapter: Use the Image Adapter.
            prompt_depth: L, transformer layers that receive prompts.
            prompt_length: n, prompts a layer.
            prompt_std: Standard deviation of the prompts' initial values.
            main_texts: Better and worse text of the main task.
            auxiliary_texts: Better and worse text of the auxiliary task.
            mpa_shared: One MPA for all depths.
            mpa_start: `random` as drawn, which the paper's silence leaves; its deep prompts collapse at the start (12
                depths of ViT-B/32 sizes: mean cosine within a depth .95 at the second and .98 and more from the third,
                norms from .55 to 112, gradients 87 times smaller at the last than at the first). `identity` zeroes the
                output maps, so that deeper prompts start as copies of the first and stay apart.
            adapter_reduction: E over the adapter's inner width.
            residual_ratio: a of the adapter.
            adapter_shared: One adapter for both tasks.

        Raises:
            ValueError: If prompt_depth exceeds a tower's layers, or the switches contradict each other.
        """
        super().__init__()
        layers = min(backbone.image_layers, backbone.text_layers)
        if not 1 <= prompt_depth <= layers:
            raise AgiqaError(f"model.prompt_depth is {prompt_depth}; the towers of {backbone.name} allow 1 to {layers}")
        if (mpa or layer_f) and not auxiliary:
            raise AgiqaError("mpa and layer_f read the auxiliary prompts: switch auxiliary on, or both off")
        self.backbone = backbone
        self.depth, self.length = prompt_depth, prompt_length
        widths = (prompt_length, backbone.text_width, backbone.image_width, prompt_std)
        self.main_prompts = PromptLearner(prompt_depth, *widths)
        self.auxiliary_prompts = PromptLearner(1 if mpa else prompt_depth, *widths) if auxiliary else None
        self.mpa: nn.ModuleList | None = None
        if mpa:
            count = 1 if mpa_shared else prompt_depth - 1
            self.mpa = nn.ModuleList(
                MultimodalPromptAttention(backbone.text_width, backbone.image_width) for _ in range(count)
            )
            if mpa_start == "identity":
                for attention in self.mpa:
                    attention.text.start_as_identity()
                    attention.visual.start_as_identity()
        self.layer_f = LayerF(prompt_depth, backbone.image_width) if layer_f else None
        sizes = (backbone.embed_dim, adapter_reduction, residual_ratio)
        self.main_adapter = ImageAdapter(*sizes) if adapter else None
        self.auxiliary_adapter: ImageAdapter | None = None
        if adapter and auxiliary:
            self.auxiliary_adapter = self.main_adapter if adapter_shared else ImageAdapter(*sizes)
        self.register_buffer("main_tokens", backbone.tokenize(main_texts, prompt_length), persistent=False)
        self.register_buffer("auxiliary_tokens", backbone.tokenize(auxiliary_texts, prompt_length), persistent=False)

    def learned_state(self) -> dict[str, Tensor]:
        """Return the state dict without the backbone's weights, which are frozen and stand elsewhere."""
        return {key: value for key, value in self.state_dict().items() if not key.startswith("backbone.")}

    def load_learned_state(self, state: dict[str, Tensor]) -> None:
        """Load what `learned_state` returned.

        Raises:
            RuntimeError: If a learned tensor is missing, unknown or of another shape.
        """
        missing, unexpected = self.load_state_dict(state, strict=False)
        missing = [key for key in missing if not key.startswith("backbone.")]
        if missing or unexpected:
            raise RuntimeError(f"learned state does not fit this variant: missing {missing}, unknown {unexpected}")

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return what trains: everything but the backbone."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def map_parameters(self) -> list[nn.Parameter]:
        """Return those of MPA and Layer F, the maps that make prompts out of prompts."""
        return [parameter for part in (self.mpa, self.layer_f) if part is not None for parameter in part.parameters()]

    def visual_parameters(self) -> list[nn.Parameter]:
        """Return the learned visual prompts of both tasks."""
        return [part.visual for part in (self.main_prompts, self.auxiliary_prompts) if part is not None]

    def deep_auxiliary_prompts(self) -> tuple[Tensor, Tensor]:
        """Return the auxiliary task's (text (L, n, D_t), visual (L, n, D_v)) prompts at every depth."""
        if self.mpa is None:
            return self.auxiliary_prompts.text, self.auxiliary_prompts.visual
        text, visual = [self.auxiliary_prompts.text[0]], [self.auxiliary_prompts.visual[0]]
        for layer in range(1, self.depth):
            attention = self.mpa[(layer - 1) % len(self.mpa)]
            next_text, next_visual = attention(text[-1], visual[-1])
            text.append(next_text)
            visual.append(next_visual)
        return torch.stack(text), torch.stack(visual)

    def constants(self) -> tuple[Constants, Constants | None]:
        """Return both tasks' constants (main, auxiliary or None): all that does not depend on an image."""
        main_visual, auxiliary = self.main_prompts.visual, None
        if self.auxiliary_prompts is not None:
            text, visual = self.deep_auxiliary_prompts()
            auxiliary = Constants(visual, self._text_features(self.auxiliary_tokens, text))
            if self.layer_f is not None:
                main_visual = self.layer_f(main_visual, visual)
        return Constants(main_visual, self._text_features(self.main_tokens, self.main_prompts.text)), auxiliary

    def _text_features(self, tokens: Tensor, prompts: Tensor) -> Tensor:
        return F.normalize(self.backbone.encode_text(tokens, prompts), dim=-1)  # (2, E)

    def score(self, images: Tensor, constants: Constants, adapter: ImageAdapter | None) -> Tensor:
        """Return one task's scores in (0, 1), shape (B,), of normalised images (B, 3, H, W)."""
        features = self.backbone.encode_image(images, constants.visual_prompts)  # (B, E)
        return score_features(features, constants.text_features, self.backbone.logit_scale, adapter)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return (main, auxiliary or None) scores in (0, 1), each of shape (B,).

        Args:
            images: Normalised pixels, shape (B, 3, H, W) with the backbone's H = W.
        """
        main, auxiliary = self.constants()
        main_scores = self.score(images, main, self.main_adapter)
        if auxiliary is None:
            return main_scores, None
        return main_scores, self.score(images, auxiliary, self.auxiliary_adapter)
