"""CLIP's text tower (Radford 2021): tokens that see those before them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.models.nets.base import Net, Part


def quick_gelu(x: Tensor) -> Tensor:
    """As OpenAI's own CLIP has it."""
    return x * torch.sigmoid(1.702 * x)


GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}


class Read(NamedTuple):
    """What a tower makes of tokens: the states before the first layer and after each, and the text as one vector."""

    states: tuple[Tensor, ...]
    pooled: Tensor


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        shape = (len(x), -1, self.heads, x.shape[-1] // self.heads)
        q, k, v = (part(x).view(shape).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).reshape(x.shape))
        return out


class Mlp(nn.Module):
    def __init__(self, width: int, inside: int, act: str) -> None:
        super().__init__()
        self.fc1, self.fc2, self.act = nn.Linear(width, inside), nn.Linear(inside, width), GATES[act]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Layer(Part):
    def __init__(self, config: Any) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.self_attn = SelfAttention(width, config.num_attention_heads)
        self.layer_norm1 = nn.LayerNorm(width, eps)
        self.mlp = Mlp(width, config.intermediate_size, config.hidden_act)
        self.layer_norm2 = nn.LayerNorm(width, eps)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return torch.as_tensor(x + self.mlp(self.layer_norm2(x)))


class Embeddings(nn.Module):
    """What each token means, and where it stands."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[-1]]
        return out


class Encoder(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])

    def forward(self, x: Tensor, mask: Tensor | None) -> list[Tensor]:
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1], mask))
        return states


class TextTower(Net):
    STOCK = "CLIPTextModel"
    DEFAULTS = MappingProxyType({
        "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "projection_dim": 512,
        "num_hidden_layers": 12, "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5, "attention_dropout": 0.0, "initializer_range": 0.02, "initializer_factor": 1.0,
        "pad_token_id": 1, "bos_token_id": 49406, "eos_token_id": 49407,
    })  # fmt: skip

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.embeddings, self.encoder = Embeddings(self.config), Encoder(self.config)
        self.final_layer_norm = nn.LayerNorm(self.config.hidden_size, self.config.layer_norm_eps)
        self._begin()

    def forward(self, ids: Tensor, seen: Tensor | None = None) -> Read:
        """`seen`: 0 where a token is kept from the attention, as if it were not there."""
        states = self.encoder(self.embeddings(ids), None if seen is None else allowed(seen))
        last = self.final_layer_norm(states[-1])
        return Read(tuple(states), last[torch.arange(len(ids), device=ids.device), self._ends(ids)])

    def tokens(self) -> nn.Embedding:
        return self.embeddings.token_embedding

    def _ends(self, ids: Tensor) -> Tensor:
        """Where each text ends. Old configurations call the wrong token the end; there it is the last of all."""
        end = self.config.eos_token_id
        return ids.int().argmax(-1) if end == 2 else (ids == end).int().argmax(-1)

    @torch.no_grad()
    def _begin(self) -> None:
        """Weights to train from, as CLIP begins (Radford 2021)."""
        c, factor = self.config, self.config.initializer_factor
        for table in (self.embeddings.token_embedding, self.embeddings.position_embedding):
            nn.init.normal_(table.weight, std=factor * 0.02)
        wide, deep = c.hidden_size**-0.5 * factor, (2 * c.num_hidden_layers) ** -0.5
        for layer in self.encoder.layers:
            attention: Any = layer.self_attn
            mlp: Any = layer.mlp
            for part in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.fc2):
                nn.init.normal_(part.weight, std=wide * deep)
            nn.init.normal_(attention.out_proj.weight, std=wide)
            nn.init.normal_(mlp.fc1.weight, std=(2 * c.hidden_size) ** -0.5 * factor)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


class ProjectedTextTower(Net):
    """The same, its text brought to the space that is shared with pictures."""

    STOCK = "CLIPTextModelWithProjection"
    DEFAULTS = TextTower.DEFAULTS

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.text_model = TextTower(**fields)
        self.text_projection = nn.Linear(self.config.hidden_size, self.config.projection_dim, bias=False)
        nn.init.normal_(self.text_projection.weight, std=self.config.hidden_size**-0.5 * self.config.initializer_factor)

    def forward(self, ids: Tensor, seen: Tensor | None = None) -> Read:
        read: Read = self.text_model(ids, seen)
        return read._replace(pooled=self.text_projection(read.pooled))

    def tokens(self) -> nn.Embedding:
        return self.text_model.tokens()

    @property
    def final_layer_norm(self) -> nn.LayerNorm:
        return self.text_model.final_layer_norm


def allowed(seen: Tensor) -> Tensor:
    """[B,1,L,L]: which token may see which: itself and those before it that are there."""
    length = seen.shape[-1]
    before = torch.ones(length, length, dtype=torch.bool, device=seen.device).tril()
    return before & seen.bool()[:, None, None, :]
