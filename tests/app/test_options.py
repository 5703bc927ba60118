"""The table of options: every field of a request can be reached, and each text is read or refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import BaseModel

from app import options
from app.options import OPTIONS, option_of, request_fields
from app.validation import make_request
from ldm.errors import Code, LdmError
from pipelines.request import GuidanceUse, Request


def test_every_field_of_a_request_is_reached_by_an_option_or_by_set() -> None:
    """PROMPT is an argument; all others are rows of the table, or fields of a record that `--set` reaches."""
    targets = {target.split(".")[0] for option in OPTIONS for target in option.targets}
    assert set(Request.model_fields) - targets == {"prompt"}
    values: dict[str, Any] = {
        "apg_eta": 0.5,
        "apg_norm": 2.0,
        "apg_momentum": -0.5,
        "zero_steps": 1,
        "pag_layers": ["mid"],
    }
    named = {option.field.partition(".")[2] for option in OPTIONS if option.field.startswith("guidance.")}
    assert set(GuidanceUse.model_fields) - named == set(values)
    for name, value in values.items():
        text = f"guidance.{name}={value if name != 'pag_layers' else chr(34).join(('[', 'mid', ']'))}"
        request = make_request({"prompt": "x"} | request_fields({"set_": [text]}), option_of)
        assert getattr(request.guidance, name) == (tuple(value) if name == "pag_layers" else value)


def test_no_row_fills_a_field_that_does_not_exist() -> None:
    for option in OPTIONS:
        for target in option.targets:
            model: type[BaseModel] = Request
            for part in target.split("."):
                assert part in model.model_fields, target
                inner = model.model_fields[part].annotation
                model = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else model
    assert len({option.name for option in OPTIONS}) == len(OPTIONS)


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"size_": "64x32"}, "width", 64),
        ({"size_": "64"}, "height", 64),
        ({"steps_": "7"}, "steps", 7),
        ({"pad_": "8"}, "pad", (8, 8, 8, 8)),
        ({"image_": "PICTURE", "pad_": "8,0,16,0"}, "pad", (8, 0, 16, 0)),
        ({"fill_colour_": "#ff0080"}, "fill_colour", (255, 0, 128)),
        ({"fill_colour_": "1,2,3"}, "fill_colour", (1, 2, 3)),
        ({"sigmas_": "14.6, 2, 0"}, "sigmas", (14.6, 2.0, 0.0)),
        ({"zero_snr_": True}, "zero_snr", True),
        ({"exact_": False}, "exact", False),
        ({"set_": ["negative="]}, "negative", ""),
        ({"set_": ["steps=9"], "steps_": "3"}, "steps", 9),
        ({"set_": ["prompt=true story"]}, "prompt", "true story"),
        ({"variation_": "0.5", "variation_seed_": "3"}, "variation", 0.5),
    ],
)
def test_texts_become_fields(given: dict[str, Any], field: str, value: object) -> None:
    fields = request_fields(given)
    if "pad" in fields:
        from PIL import Image

        fields["image"] = Image.new("RGB", (8, 8))
    assert getattr(make_request(fields, option_of), field) == value


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a.safetensors", {"path": "a.safetensors"}),
        ("a.safetensors:0.8", {"path": "a.safetensors", "weight": "0.8"}),
        ("a:-1:.5", {"path": "a", "weight": "-1", "text_weight": ".5"}),
        ("C:\\x.safetensors:1", {"path": "C:\\x.safetensors", "weight": "1"}),
        ("a:nan", {"path": "a", "weight": "nan"}),
        ("dir:name", {"path": "dir:name"}),
    ],
)
def test_loras_are_split_at_their_weights(text: str, told: dict[str, str]) -> None:
    assert options.lora(text) == told


def test_controls_are_read() -> None:
    told = options.control("model=edges,image=a, b.png,hint=canny,weight=0.8,end=0.6")
    assert told == {"model": "edges", "image": "a, b.png", "hint": "canny", "weight": "0.8", "end": "0.6"}
    assert options.control("edges") == {"model": "edges"}
    assert options.hires("2") == {"scale": "2"}
    assert options.tile("512,64") == {"size": "512", "overlap": "64"}


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"size_": "33x32"}, ["--size: 33x32", "nearest legal size is 32", "Use --size 32x32."]),
        ({"size_": "0x32"}, ["--size: 0x32", "nearest legal size is 8", "Use --size 8x32."]),
        ({"size_": "big"}, ["--size: 'big'", "Write --size 512x512."]),
        ({"size_": "99999999x8"}, ["--size: 99999999x8", "Leave --size out"]),
        ({"steps_": "0"}, ["--steps: '0'", "greater than or equal to 1", "Use 1 to 1000."]),
        ({"guidance_": "nan"}, ["--guidance: 'nan'", "finite"]),
        ({"guidance_": "inf"}, ["--guidance: 'inf'", "finite"]),
        ({"strength_": "1.5"}, ["--strength: '1.5'", "less than or equal to 1", "Use 0 to 1."]),
        ({"fill_": "colr"}, ["--fill: 'colr'", "Did you mean colour?", "Choose one of original, blur, noise, colour."]),
        ({"dialect_": "a111"}, ["Did you mean a1111?"]),
        ({"seed_": "-2"}, ["--seed: '-2'", f"Use 0 to {2**63 - 1}, or -1 for any."]),
        ({"variation_seed_": str(2**63)}, [f"Use 0 to {2**63 - 1}."]),
        ({"lora_": ["a.safetensors:abc"]}, ["--lora: 'a.safetensors:abc'", "'abc' is no number"]),
        ({"lora_": ["emoji-fast:abc"]}, ["--lora: 'emoji-fast:abc'", "'abc' is no number", "emoji-fast:0.8"]),
        ({"set_": ["guidance.scal=3"]}, ["guidance.scal is not a field", "Did you mean scale?"]),
        ({"set_": ["stepz=3"]}, ["stepz is not a field", "Did you mean steps?"]),
        ({"set_": ["steps"]}, ["--set: 'steps'"]),
        ({"control_": ["modle=a,image=b"]}, ["--control", "Did you mean model?"]),
        ({"control_": ["model=a,image=b.png,start=0.9,end=0.1"]}, ["--control", "start 0.9 is not before end 0.1"]),
        ({"lora_": ["a.safetensors:nan"]}, ["--lora weight: 'nan'"]),
        ({"hires_": "scale=9"}, ["--hires scale: '9'"]),
        ({"tile_": "8"}, ["--tile size: '8'"]),
        ({"pad_": "1,2"}, ["--pad: '1,2'", "left, top, right, bottom"]),
        ({"mask_": "x.png"}, ["--mask needs an image", "Add --image FILE."]),
        ({"only_masked_": True}, ["--only-masked needs a mask", "Add --mask MASK."]),
        ({"set_": ["guidance=5"]}, ["guidance is a record", "Write --set guidance.scale=5."]),
        ({"control_": ["image=b.png"]}, ["--control: model= is missing."]),
        ({"variation_": "0.5"}, ["--variation needs a --variation-seed", "Add --variation-seed N."]),
        ({"pad_": "8,0,-1,0"}, ["--pad: 8,0,-1,0 is not"]),
        ({"tile_": "size=64,overlap=64"}, ["--tile: size=64,overlap=64 is not"]),
        ({"guidance_interval_": "0.9,0.1"}, ["--guidance-interval (0.9, 0.1) ends before it starts", "Write "]),
        ({"fill_colour_": "red"}, ["--fill-colour: 'red'"]),
        ({"fill_colour_": "1,2,300"}, ["--fill-colour"]),
        ({"sigmas_": "3,x"}, ["--sigmas: 'x'"]),
        ({"count_": "1e9"}, ["--count: '1e9'"]),
        ({"set_": ["prompt=" + "a" * 30000]}, ["PROMPT", "20000 bytes"]),
    ],
)
def test_wrong_values_are_named_with_their_option_and_the_way_out(given: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(LdmError) as caught:
        make_request(request_fields(given), option_of)
    assert caught.value.code == Code.USAGE
    text = str(caught.value)
    assert all(part in text for part in parts), text
    assert len(text) < 700
    assert caught.value.fix.endswith(".")


def test_any_seed_is_drawn_anew() -> None:
    drawn = {options.seed("-1") for _ in range(20)}
    assert len(drawn) == 20
    assert all(0 <= seed < 2**32 for seed in drawn)


def test_a_picture_in_a_wrong_control_is_not_printed() -> None:
    with pytest.raises(LdmError) as caught:
        make_request({"controls": [{"image": Image.new("RGB", (8, 8)), "weight": "9e9", "model": "m"}]}, option_of)
    assert "PIL" not in str(caught.value) and "Use 0 to 10." in str(caught.value)


@pytest.mark.parametrize("option", ["model_", "out_", "vae_", "from_", "lora_"])
def test_an_empty_text_is_no_name(option: str) -> None:
    with pytest.raises(LdmError, match="value is empty") as caught:
        options.refuse_empty({option: [""] if option == "lora_" else ""})
    assert caught.value.code == Code.USAGE
    options.refuse_empty({"negative_": "", "model_": None})


def test_folders_are_told_from_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LdmError, match="is a folder"):
        options.existing(str(tmp_path), "--image")
    with pytest.raises(LdmError, match="the name is empty"):
        options.existing("", "--image")
    with pytest.raises(LdmError, match="was not found"):
        options.existing(str(tmp_path / "x"), "--image")
    with pytest.raises(LdmError, match="adapter_model"):
        options.existing(str(tmp_path), "--lora", peft=True)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    assert options.existing(str(tmp_path), "--lora", peft=True) == tmp_path
    with pytest.raises(LdmError, match="is a file"):
        options.existing_folder(str(tmp_path / "adapter_model.safetensors"), "--wildcards")
