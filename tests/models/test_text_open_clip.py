"""Text towers of open_clip checkpoints: the same numbers as open_clip itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file, save_file

from ldm.errors import Code, LdmError
from ldm.models.open_clip_text import (
    open_clip_text_model,
    open_clip_text_to_transformers,
    open_clip_tower,
    text_config,
)
from ldm.models.text import TextEncoder

HEADS = 4


def model(kind: type = CLIP, quick_gelu: bool = False, vocab: int = 49_408) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = kind(
            embed_dim=24,
            vision_cfg=CLIPVisionCfg(layers=1, width=16, head_width=8, image_size=8, patch_size=4),
            text_cfg=CLIPTextCfg(context_length=77, vocab_size=vocab, width=32, heads=HEADS, layers=3),
            quick_gelu=quick_gelu,
        ).eval()
        with torch.no_grad():
            for name, weight in made.named_parameters():
                if weight.dim() > 1 or "ln_" in name:
                    weight.add_(torch.randn_like(weight) * 0.1)
    return made


@torch.no_grad()
def hidden(made: Any, ids: torch.Tensor) -> torch.Tensor:
    """After the last layer and the final norm, by open_clip's own modules."""
    text = made.text if isinstance(made, CustomTextCLIP) else made
    x = text.token_embedding(ids) + text.positional_embedding
    state: torch.Tensor = text.ln_final(text.transformer(x, attn_mask=text.attn_mask))
    return state


@pytest.mark.parametrize("kind", [CLIP, CustomTextCLIP])
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_a_checkpoint_file_gives_open_clips_hidden_states(tmp_path: Path, kind: type, quick_gelu: bool) -> None:
    made, words = model(kind, quick_gelu), SimpleTokenizer()
    save_file(made.state_dict(), tmp_path / "open_clip_model.safetensors")
    tower = open_clip_tower(load_file(tmp_path / "open_clip_model.safetensors"), quick_gelu=quick_gelu, heads=HEADS)
    encoder = TextEncoder([tower])
    for text in ("a photo of a cat", "", "wow! naïve 日本"):
        ids = words(text)
        found = encoder.encode(text)
        assert float((found.text - hidden(made, ids)).abs().max()) <= 1e-5
        assert found.pooled is not None
        with torch.no_grad():
            assert float((found.pooled - made.encode_text(ids)).abs().max()) <= 1e-5
    other = TextEncoder([open_clip_tower(made.state_dict(), quick_gelu=not quick_gelu, heads=HEADS)])
    assert float((other.encode("a cat").text - hidden(made, words("a cat"))).abs().max()) > 1e-3


def test_names_prefix_and_shapes() -> None:
    state = model(vocab=300).state_dict()
    converted = open_clip_text_to_transformers({f"cond_stage_model.model.{k}": v for k, v in state.items()})
    assert converted.keys() == open_clip_text_to_transformers(state).keys()
    fused = state["transformer.resblocks.2.attn.in_proj_weight"]
    name = "text_model.encoder.layers.2.self_attn.{}_proj.weight"
    assert torch.equal(torch.cat([converted[name.format(p)] for p in "qkv"]), fused)
    assert torch.equal(converted["text_projection.weight"], state["text_projection"].T)
    assert not any("visual" in k or "logit_scale" in k for k in converted)
    config = text_config(converted, heads=HEADS)
    assert [config[key] for key in ("vocab_size", "eos_token_id", "hidden_size")] == [300, 299, 32]
    assert [config[key] for key in ("num_hidden_layers", "intermediate_size", "projection_dim")] == [3, 128, 24]
    assert open_clip_text_model(state, heads=HEADS).state_dict().keys() == converted.keys()


def test_it_is_what_diffusers_own_converter_makes() -> None:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    state = model(vocab=300).state_dict()
    ours = open_clip_text_to_transformers(state)
    target = open_clip_text_model(state, heads=HEADS)
    theirs = convert_open_clip_checkpoint(target, {f"m.{k}": v for k, v in state.items()}, prefix="m.")
    shared = theirs.keys() & ours.keys()
    assert len(shared) == len(ours)
    assert all(torch.equal(ours[k], theirs[k]) for k in shared)


def test_without_a_projection_the_pooled_text_is_not_projected() -> None:
    state = {k: v for k, v in model(vocab=300).state_dict().items() if k != "text_projection"}
    built = open_clip_text_model(state, heads=HEADS)
    out = built(torch.tensor([[298, 5, 6, 299]]))
    assert torch.equal(out.pooled, built.final_layer_norm(out.states[-1])[:, 3])


def test_what_is_no_text_tower_is_refused() -> None:
    state = dict(model(vocab=300).state_dict())
    with pytest.raises(LdmError) as error:
        open_clip_text_to_transformers({"a": torch.zeros(1)})
    assert error.value.code == Code.MODEL
    del state["transformer.resblocks.1.ln_1.weight"]
    state["ln_final.weight"] = torch.zeros(7)
    with pytest.raises(LdmError) as error:
        open_clip_text_model(state, heads=HEADS)
    assert "final_layer_norm.weight" in error.value.what
