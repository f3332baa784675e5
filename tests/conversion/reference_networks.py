"""The quantized networks of the paper's code, written anew from a description of their layout and semantics.

They make the `.pth` files that the reader is tested on, and say what those files compute. Nothing of our networks is
used in here, so that the two can be held against one another.
"""

import torch
from torch import nn


class Quan(nn.Module):
    """s * clamp(floor(x / s + 1/2)); its state is `s` alone, as in the paper's code."""

    def __init__(self, level: int, sym: bool):
        super().__init__()
        self.low, self.high = (-(level // 2), level // 2 - 1) if sym else (0, level - 1)
        self.s = nn.Parameter(torch.tensor(1.0))
        self.fitting = False
        self.levels: torch.Tensor | None = None

    def forward(self, x):
        if self.fitting:
            self.s.data = (2 * x.detach().abs().mean() / self.high**0.5).to(self.s.dtype)
        self.levels = torch.clamp(torch.floor(x / self.s + 0.5), self.low, self.high)
        return self.levels * self.s


class QAttention(nn.Module):
    def __init__(self, dim: int, heads: int, level: int, bias: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.quan_q, self.quan_k, self.quan_v = Quan(level, True), Quan(level, True), Quan(level, True)
        self.proj = nn.Linear(dim, dim)
        self.quan_proj = Quan(level, True)
        self.attn_quan = Quan(level, False)
        self.after_attn_quan = Quan(level, True)

    def forward(self, x):
        batch, tokens, dim = x.shape
        q, k, v = (
            part.reshape(batch, tokens, self.heads, -1).permute(0, 2, 1, 3) for part in self.qkv(x).chunk(3, -1)
        )
        q, k, v = self.quan_q(q), self.quan_k(k), self.quan_v(v)
        scores = (q * (dim // self.heads) ** -0.5) @ k.transpose(2, 3)
        context = self.after_attn_quan(self.attn_quan(scores.softmax(-1)) @ v)
        return self.quan_proj(self.proj(context.permute(0, 2, 1, 3).reshape(batch, tokens, dim)))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, level: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.Sequential(Quan(level, False), nn.ReLU())
        self.fc2 = nn.Sequential(nn.Linear(hidden, dim), Quan(level, True))

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class QBlock(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int, level: int, bias: bool):
        super().__init__()
        self.norm1 = nn.Sequential(nn.LayerNorm(dim, eps=1e-6), Quan(level, True))
        self.attn = QAttention(dim, heads, level, bias)
        self.norm2 = nn.Sequential(nn.LayerNorm(dim, eps=1e-6), Quan(level, True))
        self.mlp = Mlp(dim, hidden, level)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, patch: int, channels: int, dim: int, level: int):
        super().__init__()
        self.proj = nn.Sequential(nn.Conv2d(channels, dim, patch, patch), Quan(level, True))


class ReferenceViT(nn.Module):
    """timm's VisionTransformer with quantizers; `global_pool` reads the mean of the patches, then normalises.

    `camera_channels`: the network for event cameras, with a convolution to `channels` ahead of it.
    """

    def __init__(
        self, level=16, dim=32, layers=2, heads=4, hidden=48, image=8, patch=4, channels=3, classes=5, bias=True,
        global_pool=False, camera_channels=None,
    ):  # fmt: skip
        super().__init__()
        if camera_channels:
            conv = nn.Conv2d(camera_channels, channels, kernel_size=3, padding=1)
            self.align = nn.Sequential(conv, Quan(level, True))
        self.global_pool = global_pool
        height, width = (image, image) if isinstance(image, int) else image
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, height // patch * (width // patch) + 1, dim))
        self.patch_embed = PatchEmbed(patch, channels, dim, level)
        self.blocks = nn.ModuleList(QBlock(dim, heads, hidden, level, bias) for _ in range(layers))
        norm = nn.Sequential(nn.LayerNorm(dim, eps=1e-6), Quan(level, True))
        self.add_module("fc_norm" if global_pool else "norm", norm)
        self.head = nn.Linear(dim, classes)

    def forward(self, images):
        if hasattr(self, "align"):
            images = self.align(images)
        patches = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        if self.global_pool:
            return self.head(self.fc_norm(x[:, 1:].mean(1)))
        return self.head(self.norm(x)[:, 0])


class QSelfAttention(nn.Module):
    def __init__(self, dim: int, heads: int, level: int):
        super().__init__()
        self.heads = heads
        self.query, self.query_quan = nn.Linear(dim, dim), Quan(level, True)
        self.key, self.key_quan = nn.Linear(dim, dim), Quan(level, True)
        self.value, self.value_quan = nn.Linear(dim, dim), Quan(level, True)
        self.attn_quan = Quan(level, False)
        self.after_attn_quan = Quan(level, False)

    def forward(self, x, mask):
        batch, tokens, dim = x.shape
        q, k, v = (
            quan(linear(x)).reshape(batch, tokens, self.heads, -1).permute(0, 2, 1, 3)
            for linear, quan in (
                (self.query, self.query_quan),
                (self.key, self.key_quan),
                (self.value, self.value_quan),
            )
        )
        scores = q @ k.transpose(2, 3) / (dim // self.heads) ** 0.5 + mask
        context = self.after_attn_quan(self.attn_quan(scores.softmax(-1)) @ v)
        return context.permute(0, 2, 1, 3).reshape(batch, tokens, dim)


class Output(nn.Module):
    def __init__(self, width: int, dim: int, level: int):
        super().__init__()
        self.dense = nn.Sequential(nn.Linear(width, dim), Quan(level, True))
        self.LayerNorm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, x, residual):
        return self.LayerNorm(self.dense(x) + residual)


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int, level: int):
        super().__init__()
        self.attention = nn.ModuleDict({"self": QSelfAttention(dim, heads, level), "output": Output(dim, dim, level)})
        self.intermediate = nn.ModuleDict(
            {
                "dense": nn.Linear(dim, hidden),
                "intermediate_act_fn": nn.Sequential(Quan(level, False), nn.ReLU()),
            }
        )
        self.output = Output(hidden, dim, level)

    def forward(self, x, mask):
        x = self.attention["output"](self.attention["self"](x, mask), x)
        hidden = self.intermediate["intermediate_act_fn"](self.intermediate["dense"](x))
        return self.output(hidden, x)


class ReferenceRoberta(nn.Module):
    """transformers' RoBERTa classifier with quantizers and a ReLU head, of ids padded on the right with id 1."""

    def __init__(self, level=16, dim=32, layers=2, heads=4, hidden=48, vocab=60, positions=24, types=2, classes=3):
        super().__init__()
        self.roberta = nn.Module()
        embeddings = self.roberta.embeddings = nn.Module()
        embeddings.word_embeddings = nn.Embedding(vocab, dim)
        embeddings.position_embeddings = nn.Embedding(positions, dim)
        embeddings.token_type_embeddings = nn.Embedding(types, dim)
        embeddings.LayerNorm = nn.LayerNorm(dim, eps=1e-5)
        embeddings.register_buffer("position_ids", torch.arange(positions)[None])
        self.roberta.encoder = nn.Module()
        self.roberta.encoder.layer = nn.ModuleList(Layer(dim, heads, hidden, level) for _ in range(layers))
        self.classifier = nn.Module()
        self.classifier.dense = nn.Linear(dim, dim)
        self.classifier.act = nn.Sequential(Quan(level, False), nn.ReLU())
        self.classifier.out_proj = nn.Linear(dim, classes)

    def forward(self, ids, mask):
        embeddings = self.roberta.embeddings
        x = embeddings.word_embeddings(ids) + embeddings.token_type_embeddings(torch.zeros_like(ids))
        x = embeddings.LayerNorm(x + embeddings.position_embeddings(mask.cumsum(1) * mask + 1))
        bias = (1.0 - mask[:, None, None].to(x)) * torch.finfo(x.dtype).min
        for layer in self.roberta.encoder.layer:
            x = layer(x, bias)
        return self.classifier.out_proj(self.classifier.act(self.classifier.dense(x[:, 0])))


def quantizers(network: nn.Module) -> list[tuple[str, Quan]]:
    """(name, quantizer), in order of the modules."""
    return [(name, module) for name, module in network.named_modules() if isinstance(module, Quan)]


@torch.no_grad()
def randomized(network: nn.Module, *inputs: torch.Tensor, seed: int = 0) -> nn.Module:
    """Random weights, large enough that all levels are used, and scales from one pass over `inputs`."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if name.endswith(".s"):
            continue
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        is_norm = "norm" in name.lower() and name.endswith("weight")
        parameter.copy_(1 + 0.2 * noise if is_norm else 0.25 * noise)
    for fitting in (True, False):
        for _, quantizer in quantizers(network):
            quantizer.fitting = fitting
        network(*inputs)
    return network.eval()
