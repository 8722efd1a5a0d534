"""Writes tests/golden/vit_mae_*.npz: a masked autoencoder in PyTorch, written from the formulas.

    python scripts/make_golden_vit_mae.py

Each file holds weights under the names that Sapiens' training checkpoints have, images, the noise
that draws the masks, and what comes out: features of every encoder layer with nothing masked, the
loss and the gradient of every weight.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

FOLDER = Path(__file__).parent.parent / "tests" / "golden"

SIZES = {
    "even": {
        "grid": (3, 5),
        "patch_size": 4,
        "d_model": 16,
        "num_layers": 2,
        "num_heads": 2,
        "d_ff": 32,
        "decoder_d_model": 16,
        "decoder_num_layers": 1,
        "decoder_num_heads": 2,
        "mask_ratio": 0.75,
        "normalize_patches": True,
    },
    "odd": {  # heads of 5 and 3 channels; raw pixels
        "grid": (3, 3),
        "patch_size": 3,
        "d_model": 20,
        "num_layers": 2,
        "num_heads": 4,
        "d_ff": 24,
        "decoder_d_model": 12,
        "decoder_num_layers": 2,
        "decoder_num_heads": 4,
        "mask_ratio": 0.4,
        "normalize_patches": False,
    },
}
MEAN = torch.tensor([123.675, 116.28, 103.53])
STD = torch.tensor([58.395, 57.12, 57.375])


class Attention(nn.Module):
    """Attention: one linear map to queries, keys and values, softmax, one linear map back."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.num_heads = num_heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        size = width // self.num_heads
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, size).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = torch.softmax(q @ k.transpose(-1, -2) / size**0.5, dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, length, width))


class FFN(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        gelu = nn.Sequential(nn.Linear(width, inner), nn.GELU())
        self.layers = nn.Sequential(gelu, nn.Linear(inner, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Layer(nn.Module):
    def __init__(self, width: int, num_heads: int, inner: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, num_heads)
        self.ln2 = nn.LayerNorm(width, eps=1e-6)
        self.ffn = FFN(width, inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.ffn(self.ln2(x))


def positions(grid: tuple[int, int], width: int) -> nn.Parameter:
    """Returns sines and cosines of the row, then of the column; zeros for the class token."""
    table = torch.zeros(1, 1 + grid[0] * grid[1], width)
    quarter = width // 4
    for row in range(grid[0]):
        for column in range(grid[1]):
            for i in range(quarter):
                w = 10000.0 ** (-i / quarter)
                a, b = row * w, column * w
                waves = torch.tensor([math.sin(a), math.cos(a), math.sin(b), math.cos(b)])
                table[0, 1 + row * grid[1] + column, i::quarter] = waves
    return nn.Parameter(table, requires_grad=False)


class Backbone(nn.Module):
    def __init__(self, s: dict) -> None:
        super().__init__()
        d, size = s["d_model"], s["patch_size"]
        self.patch_embed = nn.ModuleDict({"projection": nn.Conv2d(3, d, size, size)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.pos_embed = positions(s["grid"], d)
        blocks = [Layer(d, s["num_heads"], s["d_ff"]) for _ in range(s["num_layers"])]
        self.layers = nn.ModuleList(blocks)
        self.ln1 = nn.LayerNorm(d, eps=1e-6)

    def forward(self, x: torch.Tensor, seen: torch.Tensor | None) -> list[torch.Tensor]:
        """Returns the tokens after each layer, then the normalised ones.

        `seen` [batch, kept] are the patches to keep; None keeps all.
        """
        x = self.patch_embed["projection"](x).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
        if seen is not None:
            x = torch.gather(x, 1, seen[..., None].expand(-1, -1, x.shape[2]))
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([cls, x], dim=1)
        outputs = []
        for layer in self.layers:
            outputs.append(x := layer(x))
        return [*outputs, self.ln1(x)]


class Neck(nn.Module):
    def __init__(self, s: dict) -> None:
        super().__init__()
        e = s["decoder_d_model"]
        self.decoder_embed = nn.Linear(s["d_model"], e)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, e))
        self.decoder_pos_embed = positions(s["grid"], e)
        blocks = [Layer(e, s["decoder_num_heads"], 4 * e) for _ in range(s["decoder_num_layers"])]
        self.decoder_blocks = nn.ModuleList(blocks)
        self.ln1 = nn.LayerNorm(e, eps=1e-6)
        self.decoder_pred = nn.Linear(e, s["patch_size"] ** 2 * 3)

    def forward(self, x: torch.Tensor, restore: torch.Tensor) -> torch.Tensor:
        x = self.decoder_embed(x)
        num_removed = restore.shape[1] + 1 - x.shape[1]
        masks = self.mask_token.expand(len(x), num_removed, -1)
        patches = torch.cat([x[:, 1:], masks], dim=1)
        patches = torch.gather(patches, 1, restore[..., None].expand(-1, -1, x.shape[2]))
        x = torch.cat([x[:, :1], patches], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.ln1(x))[:, 1:]


class MAE(nn.Module):
    def __init__(self, sizes: dict) -> None:
        super().__init__()
        self.sizes = sizes
        self.backbone = Backbone(sizes)
        self.neck = Neck(sizes)

    def loss(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Returns the mean squared error of the pixels, over the removed patches."""
        size, num_patches = self.sizes["patch_size"], noise.shape[1]
        shuffle = torch.argsort(noise, dim=1)
        restore = torch.argsort(shuffle, dim=1)
        num_seen = int(num_patches * (1 - self.sizes["mask_ratio"]))
        mask = (restore >= num_seen).float()
        predicted = self.neck(self.backbone(x, shuffle[:, :num_seen])[-1], restore)
        patches = x.unfold(2, size, size).unfold(3, size, size)  # b, c, rows, columns, p, q
        target = patches.permute(0, 2, 3, 4, 5, 1).reshape(*predicted.shape)
        if self.sizes["normalize_patches"]:
            mean = target.mean(dim=-1, keepdim=True)
            target = (target - mean) / (target.var(dim=-1, keepdim=True) + 1e-6) ** 0.5
        error = F.mse_loss(predicted, target, reduction="none").mean(dim=-1)
        return (error * mask).sum() / mask.sum()


def draw_weights(model: nn.Module) -> None:
    """Sets weights that are so large that every part of the model matters."""
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            fan_in = weight[0].numel() if weight.ndim > 1 and "token" not in name else 4
            nn.init.normal_(weight, std=1.2 * fan_in**-0.5)
            if "ln" in name and name.endswith("weight"):
                weight.data += 1.0


def main() -> None:
    for name, sizes in SIZES.items():
        torch.manual_seed(0)
        model = MAE(sizes)
        draw_weights(model)
        (rows, columns), size = sizes["grid"], sizes["patch_size"]
        images = torch.randint(256, (2, rows * size, columns * size, 3), dtype=torch.uint8)
        noise = torch.rand(2, rows * columns)
        x = ((images.float() - MEAN) / STD).permute(0, 3, 1, 2)
        *layers, features = model.backbone(x, None)
        loss = model.loss(x, noise)
        loss.backward()
        arrays = {
            "sizes": np.array(json.dumps(sizes)),
            "images": images,
            "noise": noise,
            "layers": torch.stack(layers).detach(),
            "features": features.detach(),
            "loss": loss.detach(),
        }
        for key, weight in model.named_parameters():
            arrays[f"weight/{key}"] = weight.detach()
            arrays[f"gradient/{key}"] = (
                torch.zeros_like(weight) if weight.grad is None else weight.grad
            )
        path = FOLDER / f"vit_mae_{name}.npz"
        content: Any = {key: np.asarray(value) for key, value in arrays.items()}
        np.savez_compressed(path, **content)
        print(f"{path.name}: loss {loss.item():.4f}, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
