"""A GPT-2 as nanoGPT describes one, in our own words: a few plain modules, attention fused."""

import json
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TURNED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # transformers keeps them as [in, out]


class Attention(nn.Module):
    """Causal attention; the three projections in one product."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.heads, self.dropout = heads, dropout

    def forward(self, x: Tensor) -> Tensor:
        """Return what each position reads from those before it, [B, T, D]."""
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.c_attn(x).chunk(3, dim=2)
        )
        chance = self.dropout if self.training else 0.0
        read = F.scaled_dot_product_attention(query, key, value, dropout_p=chance, is_causal=True)
        return F.dropout(self.c_proj(read.transpose(1, 2).flatten(2)), self.dropout, self.training)


class Perceptron(nn.Module):
    """The part of a block that looks at one position; tanh GELU, as GPT-2's weights want it."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, T, D]."""
        wide = F.gelu(self.c_fc(x), approximate="tanh")
        return F.dropout(self.c_proj(wide), self.dropout, self.training)


class Block(nn.Module):
    """Normalise, attend, add; normalise, think, add."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, dropout)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Perceptron(width, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, T, D]."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """Token and position embeddings, blocks, and a head that shares the token embedding."""

    def __init__(self, config: dict[str, int], dropout: float) -> None:
        super().__init__()
        width = config["n_embd"]
        self.wte = nn.Embedding(config["vocab_size"], width)
        self.wpe = nn.Embedding(config["n_positions"], width)
        self.h = nn.ModuleList(
            Block(width, config["n_head"], dropout) for _ in range(config["n_layer"])
        )
        self.ln_f = nn.LayerNorm(width)
        self.dropout = dropout

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits [B, T, V]."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = F.dropout(self.wte(ids) + self.wpe(positions), self.dropout, self.training)
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)

    @classmethod
    def from_folder(cls, folder: Path, dropout: float) -> Self:
        """Load the weights that transformers wrote."""
        from safetensors.torch import load_file

        model = cls(json.loads((folder / "config.json").read_text()), dropout)
        found = load_file(folder / "model.safetensors")
        state = {name.removeprefix("transformer."): tensor for name, tensor in found.items()}
        state.pop("lm_head.weight", None)
        for name in state:
            if name.endswith(TURNED):
                state[name] = state[name].t().contiguous()
        model.load_state_dict(state)
        return model

    def save(self, path: Path) -> None:
        """Write the weights."""
        from safetensors.torch import save_file

        save_file(self.state_dict(), path)
