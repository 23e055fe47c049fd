"""The models that `ablation.py` compares: five layouts of the two attentions, and three peers of the same size."""

from dataclasses import replace

import torch
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from davit.models.attention import ChannelAttention, WindowAttention
from davit.models.blocks import NORM_EPS, ConvPositionEncoding, DropPath, Mlp
from davit.models.classifier import Classifier
from davit.models.config import Attention, ClassifierConfig, DaViTConfig
from davit.models.davit import init_linear

WIDTH = 20  # of the first stage; the others have 2, 4 and 8 times as much, as in the paper, and so has Swin
HEADS = (1, 2, 4, 8)
BLOCKS = 2  # attention blocks of a stage: one dual block, as three of the paper's four stages have
VIT_PATCH, VIT_WIDTH, VIT_DEPTH, VIT_HEADS = 8, 120, 5, 5
PVT_MLP = {32: (4.0, 4.0, 4.0, 3.0), 64: (4.0, 4.0, 3.0, 2.0)}  # make room for its reducing convolutions
IMAGE_SIZES = tuple(PVT_MLP)
LAYOUTS: dict[str, tuple[Attention, ...]] = {
    "window": ("window",),
    "channel": ("channel",),
    "window-channel": ("window", "channel"),
    "channel-window": ("channel", "window"),
    "parallel": ("window", "channel"),
}
BARE = "-no-conv"  # ends the name of a layout without position convolutions
PEERS = ("swin", "pvt_v2", "vit")
MODELS = (*LAYOUTS, *(name + BARE for name in LAYOUTS), *PEERS)


def family(name: str) -> str:
    """Models that share a learning rate: the layouts with position convolutions, those without, each peer alone."""
    if name in PEERS:
        return name
    return "layouts" + BARE if name.endswith(BARE) else "layouts"


class ParallelBlock(nn.Module):
    """Both attentions read the same input and their results are summed; then one MLP of twice the hidden width.

    So it has the attentions and the MLP parameters of a dual attention block, in half as many sequential steps; of
    position encodings and norms it has two in place of four.
    """

    def __init__(self, config: DaViTConfig, width: int) -> None:
        """Build for `width` channels."""
        super().__init__()
        self.cpe_attn = ConvPositionEncoding(width) if config.conv_position else nn.Identity()
        self.norm_attn = nn.LayerNorm(width, eps=NORM_EPS)
        self.window = WindowAttention(width, config.head_width, config.window)
        self.channel = ChannelAttention(width, config.head_width, config.channel_scale)
        self.cpe_mlp = ConvPositionEncoding(width) if config.conv_position else nn.Identity()
        self.norm_mlp = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, 2 * int(width * config.mlp_ratio))
        self.drop_path = DropPath(config.drop_path)

    def forward(self, x: Tensor) -> Tensor:  # (B, H, W, C)
        """Return the same shape."""
        x = self.cpe_attn(x)
        y = self.norm_attn(x)
        x = x + self.drop_path(self.window(y) + self.channel(y))
        x = self.cpe_mlp(x)
        return x + self.drop_path(self.mlp(self.norm_mlp(x)))


def shape(image_size: int) -> DaViTConfig:
    """The dual attention model that all others are made to resemble.

    The windows of a picture of 32 pixels have 2x2 positions: its maps have 8, 4, 2 and 1 a side, so windows are as
    much smaller than the map as half-way through the paper's model, and the last two stages are seen whole.
    """
    widths = (WIDTH, 2 * WIDTH, 4 * WIDTH, 8 * WIDTH)
    return DaViTConfig(widths=widths, depths=(1, 1, 1, 1), head_width=WIDTH, window=max(1, image_size // 16))


def build(name: str, image_size: int, classes: int) -> nn.Module:
    """Build one of `MODELS` with fresh weights: images (B, 3, image_size, image_size) to logits.

    Raises:
        ValueError: no such model.
    """
    if name not in MODELS:
        raise ValueError(f"no model {name!r} in this comparison; there are {', '.join(MODELS)}")
    if name in PEERS:
        return _peer(name, image_size, classes)
    layout = name.removesuffix(BARE)
    attentions = LAYOUTS[layout]
    depth = BLOCKS // len(attentions)
    config = replace(
        shape(image_size),
        attentions=attentions,
        depths=(depth,) * 4,
        conv_position=not name.endswith(BARE),
    )
    model = Classifier(ClassifierConfig(backbone=config, num_classes=classes))
    if layout == "parallel":
        for stage, width in zip(model.backbone.stages, config.widths, strict=True):
            stage.blocks = nn.ModuleList(ParallelBlock(config, width) for _ in range(depth))
            stage.blocks.apply(init_linear)
    return model


def _peer(name: str, image_size: int, classes: int) -> nn.Module:
    """A small model of timm's classes, on the same stem stride, with the number of parameters of `shape`."""
    config = shape(image_size)
    if name == "swin":
        return SwinTransformer(
            img_size=image_size,
            window_size=config.window,
            embed_dim=WIDTH,
            depths=(BLOCKS,) * 4,
            num_heads=HEADS,
            num_classes=classes,
            drop_path_rate=0.0,
        )
    if name == "pvt_v2":
        return PyramidVisionTransformerV2(
            depths=(BLOCKS,) * 4,
            embed_dims=config.widths,
            num_heads=HEADS,
            # as far as leaves 2x2 keys: at 64 pixels these are its own 8, 4, 2 and 1
            sr_ratios=tuple(max(1, image_size // (2 * stride)) for stride in (4, 8, 16, 32)),
            mlp_ratios=PVT_MLP[image_size],
            num_classes=classes,
        )
    return VisionTransformer(
        img_size=image_size,
        patch_size=VIT_PATCH,
        embed_dim=VIT_WIDTH,
        depth=VIT_DEPTH,
        num_heads=VIT_HEADS,
        num_classes=classes,
        global_pool="avg",
        class_token=False,
    )


@torch.no_grad()
def multiply_adds(model: nn.Module, image_size: int) -> int:
    """Multiply-adds of one image."""
    model.eval()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # fused kernels go uncounted
        model(torch.zeros(1, 3, image_size, image_size))
    return counter.get_total_flops() // 2
