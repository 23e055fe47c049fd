"""The text tower of CLIP (arXiv 2103.00020, section 2.4), its tensors named and drawn as open_clip does."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davit.models.clip_config import TextConfig

NORM_EPS = 1e-5


class TextTower(nn.Module):
    """A causal transformer over tokens; the last token of a text, its highest number, speaks for it.

    A state dict of open_clip's text tower loads strictly.
    """

    def __init__(self, config: TextConfig, embedding: int) -> None:
        """Build with fresh weights; `embedding` is the length of what comes out."""
        super().__init__()
        width = config.width
        self.config, self.embedding = config, embedding
        self.token_embedding = TokenEmbedding(config.vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context, width))
        self.transformer = TextTransformer(config)
        self.ln_final = nn.LayerNorm(width, eps=NORM_EPS)
        self.text_projection = nn.Parameter(torch.empty(width, embedding))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw first values of what no other module holds."""
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=self.config.width**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:  # (B, T), T at most the context
        """Return the embedding of each text, not normalised, (B, embedding).

        Raises:
            ValueError: texts longer than the context.
        """
        if tokens.shape[1] > self.config.context:
            raise ValueError(f"the text tower reads {self.config.context} tokens, got {tokens.shape[1]}")
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        x = self.ln_final(self.transformer(x))
        last = tokens.argmax(1)
        return x[torch.arange(len(x), device=x.device), last] @ self.text_projection


class TextTransformer(nn.Module):
    """Attention blocks, one after the other."""

    def __init__(self, config: TextConfig) -> None:
        """Build the blocks."""
        super().__init__()
        self.resblocks = nn.ModuleList(TextBlock(config) for _ in range(config.layers))

    def forward(self, x: Tensor) -> Tensor:  # (B, T, width)
        """Return the same shape."""
        for block in self.resblocks:
            x = block(x)
        return x


class TextBlock(nn.Module):
    """Causal self-attention and an MLP, each normed before and added."""

    def __init__(self, config: TextConfig) -> None:
        """Build with fresh weights."""
        super().__init__()
        width = config.width
        self.ln_1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = CausalAttention(config)
        self.ln_2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = TextMlp(config)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, width)
        """Return the same shape."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class CausalAttention(nn.Module):
    """Multi-head self-attention that looks back only."""

    def __init__(self, config: TextConfig) -> None:
        """Build with fresh weights."""
        super().__init__()
        self.width, self.heads = config.width, config.heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * config.width, config.width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * config.width))
        self.out_proj = NormalLinear(config.width, config.width, std=_residual_std(config), zero_bias=True)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw first values of queries, keys and values."""
        nn.init.normal_(self.in_proj_weight, std=self.width**-0.5)
        nn.init.zeros_(self.in_proj_bias)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, width)
        """Return the same shape."""
        batch, length, width = x.shape
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = projected.view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(x.transpose(1, 2).flatten(2))


class TextMlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, config: TextConfig) -> None:
        """Build with fresh weights."""
        super().__init__()
        self.quick_gelu = config.quick_gelu
        self.c_fc = NormalLinear(config.width, 4 * config.width, std=(2 * config.width) ** -0.5)
        self.c_proj = NormalLinear(4 * config.width, config.width, std=_residual_std(config))

    def forward(self, x: Tensor) -> Tensor:  # (B, T, width)
        """Return the same shape."""
        x = self.c_fc(x)
        return self.c_proj(x * torch.sigmoid(1.702 * x) if self.quick_gelu else F.gelu(x))


class TokenEmbedding(nn.Embedding):
    """A vector for each kind of token; normal values at first."""

    def reset_parameters(self) -> None:
        """Draw first values."""
        nn.init.normal_(self.weight, std=0.02)


class NormalLinear(nn.Linear):
    """A linear layer whose weights are normal at first; its biases are uniform, or zero."""

    def __init__(self, inputs: int, outputs: int, *, std: float, zero_bias: bool = False, bias: bool = True) -> None:
        """Draw weights of deviation `std`."""
        self.std, self.zero_bias = std, zero_bias
        super().__init__(inputs, outputs, bias=bias)

    def reset_parameters(self) -> None:
        """Draw first values."""
        super().reset_parameters()
        nn.init.normal_(self.weight, std=self.std)
        if self.zero_bias and self.bias is not None:
            nn.init.zeros_(self.bias)


def _residual_std(config: TextConfig) -> float:
    """Smaller the more blocks add to the same sum."""
    return config.width**-0.5 * (2 * config.layers) ** -0.5
