"""The canvas. Outside the mask 0 samples change: 8 and 16 bits, grey and colour, alpha, profiles, modes and sizes."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ldm.errors import Code, LdmError
from ldm.images import Picture, open_image, save_image
from pipelines.canvas import Canvas, prepare
from pipelines.frame import Filter, around, cover, resize
from pipelines.hole import distance, from_around, soften
from pipelines.request import Request
from tests.images.make import exif, grey_profile, matrix_profile, table_profile

FILLS = ["original", "blur", "noise", "colour"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 1, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def mask_of(array: np.ndarray) -> Picture:
    return Picture(np.ascontiguousarray(array)[..., None])


def box_mask(height: int, width: int, box: tuple[int, int, int, int], value: int = 255) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = value
    return mask


def painting(canvas: Canvas, seed: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).random((canvas.size[1], canvas.size[0], 3)).astype(np.float32)


# --- the promise -----------------------------------------------------------------------------------------------------


@st.composite
def sources(draw: st.DrawFn) -> Picture:
    height, width = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    channels, dtype = draw(st.sampled_from([1, 3])), draw(st.sampled_from([np.uint8, np.uint16]))
    seed = draw(st.integers(0, 99))
    alpha = noise(height, width, seed=seed + 1, dtype=dtype) if draw(st.booleans()) else None
    profiles = [None, grey_profile()] if channels == 1 else [None, matrix_profile(), table_profile()]
    tags = exif(maker=b"note" * 3) if draw(st.booleans()) else None
    icc = draw(st.sampled_from(profiles))
    text = {"workflow": "{}", "parameters": "old"}
    return Picture(noise(height, width, channels, seed=seed, dtype=dtype), alpha, icc, tags, text, name="source.png")


@st.composite
def requests(draw: st.DrawFn) -> tuple[Request, np.ndarray]:
    """A request with a mask, a pad or both, and the user's mask as numbers."""
    source = draw(sources())
    kind = draw(st.sampled_from(["inpaint", "crop", "outpaint", "both"]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shape = (source.height, source.width)
    style = draw(st.sampled_from(["box", "grey", "dots", "full", "line"]))
    deep = draw(st.booleans())
    mask = np.zeros(shape, np.uint16)
    if style == "box":
        top, left = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        mask[top : top + rng.integers(1, 40), left : left + rng.integers(1, 40)] = 65535
    elif style == "grey":
        mask = np.where(rng.random(shape) < 0.5, rng.integers(0, 65536, shape), 0).astype(np.uint16)
    elif style == "dots":
        mask[rng.random(shape) < 0.05] = 65535
    elif style == "full":
        mask[:] = 65535
    else:
        mask[rng.integers(0, shape[0])] = 65535
    samples = mask if deep else (mask >> 8).astype(np.uint8)
    pad = tuple(int(v) for v in rng.integers(0, 30, 4)) if kind in ("outpaint", "both") else (0, 0, 0, 0)
    request = Request(
        image=source,
        mask=None if kind == "outpaint" else mask_of(samples),
        only_masked=kind == "crop",
        padding=draw(st.integers(0, 40)),
        mask_blur=draw(st.sampled_from([0.0, 0.5, 3.0, 20.0])),
        fill=draw(st.sampled_from(FILLS)),
        pad=pad,
    )
    return request, np.zeros(shape, np.uint8) if kind == "outpaint" else samples


SIZES = st.sampled_from([None, (8, 8), (64, 64), (16, 72), (72, 16), (40, 24)])


def check_promise(request: Request, mask: np.ndarray, size: tuple[int, int] | None) -> None:
    source = request.image
    canvas = prepare(request, size, generator())
    width, height = canvas.size
    assert width % 8 == height % 8 == 0 and (size is None or canvas.size == size)
    assert canvas.image.shape == (1, 3, height, width) and -1 <= canvas.image.min() <= canvas.image.max() <= 1
    assert canvas.mask.shape == (1, 1, height, width) and 0 <= canvas.mask.min() <= canvas.mask.max() <= 1
    result = canvas.finish(painting(canvas))
    left, top, right, bottom = request.pad
    assert result.size == (source.width + left + right, source.height + top + bottom)
    inner = slice(top, top + source.height), slice(left, left + source.width)
    assert result.pixels.dtype == source.pixels.dtype and result.pixels.shape[2] == source.pixels.shape[2]
    assert np.array_equal(result.pixels[inner][mask == 0], source.pixels[mask == 0])
    assert (result.alpha is None) == (source.alpha is None)
    assert source.alpha is None or np.array_equal(result.alpha[inner], source.alpha)
    assert (result.icc, result.exif, result.text) == (source.icc, source.exif, {"workflow": "{}"})
    assert result.exact


@settings(max_examples=100, deadline=None, derandomize=True)
@given(requests(), SIZES)
def test_outside_the_mask_no_sample_changes(made, size):
    check_promise(*made, size)


@pytest.mark.torture
@settings(max_examples=3000, deadline=None, derandomize=True)
@given(requests(), SIZES)
def test_outside_the_mask_no_sample_changes_3000_times(made, size):
    check_promise(*made, size)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("mode", ["inpaint", "crop", "outpaint"])
def test_nothing_changes_from_file_to_file(tmp_path, dtype, channels, alpha, mode):
    """Open, paint, save, open again: with a profile, EXIF and a rotation on top."""
    stored = noise(33, 31, channels, dtype=dtype)
    icc = matrix_profile() if channels == 3 else grey_profile()
    first = Picture(stored, noise(33, 31, seed=2, dtype=dtype) if alpha else None, icc, exif(6, gps=True))
    path = save_image(first, tmp_path / "in.png")
    upright = open_image(path)
    assert upright.size == (33, 31) and np.array_equal(upright.pixels, np.rot90(stored, -1))
    pad, mask = (5, 0, 9, 7) if mode == "outpaint" else (0, 0, 0, 0), box_mask(31, 33, (4, 6, 20, 19))
    use = {"image": path, "pad": pad, "only_masked": mode == "crop", "fill": "noise"}
    canvas = prepare(Request(**use, mask=None if mode == "outpaint" else mask_of(mask)), (64, 64), generator())
    again = open_image(save_image(canvas.finish(painting(canvas)), tmp_path / "out.png"))
    inner = again.pixels[pad[1] : pad[1] + 31, pad[0] : pad[0] + 33]
    kept = np.ones((31, 33), bool) if mode == "outpaint" else mask == 0
    assert np.array_equal(inner[kept], upright.pixels[kept]) and again.icc == icc and again.exif == upright.exif
    assert mode == "outpaint" or (inner[~kept] != upright.pixels[~kept]).mean() > 0.9
    assert not alpha or np.array_equal(again.alpha[pad[1] : pad[1] + 31, pad[0] : pad[0] + 33], upright.alpha)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_kept_samples_are_copied_and_never_computed(monkeypatch, dtype):
    """Arithmetic that went wrong everywhere must still leave the outside alone."""
    source, mask = Picture(noise(24, 24, 3, dtype=dtype)), box_mask(24, 24, (3, 5, 17, 11))
    canvas = prepare(Request(image=source, mask=mask_of(mask)), None, generator())
    monkeypatch.setattr("pipelines.canvas.samples", lambda array, kind: np.full(array.shape, 7, kind))
    result = canvas.finish(painting(canvas))
    assert np.array_equal(result.pixels[mask == 0], source.pixels[mask == 0]) and (result.pixels[mask > 0] == 7).all()


def test_a_photo_from_jpeg_is_equal_to_its_decoded_samples(tmp_path):
    file = io.BytesIO()
    Image.fromarray(noise(40, 48, 3)).save(file, "JPEG", quality=80)
    source, mask = open_image(file.getvalue()), box_mask(40, 48, (8, 8, 30, 30))
    canvas = prepare(Request(image=source, mask=mask_of(mask)), None, generator())
    for suffix in (".png", ".webp"):  # WebP becomes lossless by itself
        again = open_image(save_image(canvas.finish(painting(canvas)), tmp_path / f"out{suffix}"))
        assert np.array_equal(again.pixels[mask == 0], source.pixels[mask == 0])
    with pytest.raises(LdmError, match="outside its mask"):
        save_image(canvas.finish(painting(canvas)), tmp_path / "out.jpg")


# --- what is painted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("icc", [None, matrix_profile(), table_profile()], ids=["srgb", "adobe", "tables"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_hole_shows_the_painting_in_the_source_profile(icc, dtype):
    source = Picture(noise(32, 32, 3, dtype=dtype), icc=icc)
    canvas = prepare(Request(image=source, mask=mask_of(box_mask(32, 32, (8, 8, 24, 24)))), None, generator())
    colour = np.array([0.5, 0.45, 0.4], np.float32)
    seen = canvas.finish(np.broadcast_to(colour, (32, 32, 3))).rgb()
    assert np.abs(seen[8:24, 8:24] - colour).max() <= (3 if icc == table_profile() else 1) / 255


def test_painting_back_what_was_there_changes_at_most_one_step():
    for dtype in (np.uint8, np.uint16):
        source = Picture(noise(40, 40, 3, dtype=dtype))
        request = Request(image=source, mask=mask_of(np.full((40, 40), 255, np.uint8)))
        canvas = prepare(request, None, generator())
        result = canvas.finish((canvas.image[0].permute(1, 2, 0).numpy() + 1) / 2)
        assert np.abs(result.pixels.astype(int) - source.pixels.astype(int)).max() <= 1


def test_only_masked_works_on_a_crop_at_the_work_size():
    source = Picture(noise(200, 300, 3))
    mask = mask_of(box_mask(200, 300, (100, 50, 120, 70)))
    canvas = prepare(Request(image=source, mask=mask, only_masked=True, padding=10), (64, 64), generator())
    assert canvas.frame.box == (90, 40, 130, 80) and canvas.size == (64, 64)
    assert canvas.mask[0, 0, 32, 32] == 1 and canvas.mask[0, 0, 2, 2] == 0 and 0.2 < canvas.mask.mean() < 0.3
    flat = np.zeros((64, 64, 3), np.float32)
    flat[..., 1] = 1
    result = canvas.finish(flat)
    assert (result.pixels[50:70, 100:120] == (0, 255, 0)).all()
    assert any("worked on the part" in note for note in result.notes)


def test_a_crop_at_the_border_is_moved_inside_and_keeps_the_aspect():
    mask = box_mask(100, 100, (0, 0, 10, 10))
    assert around(mask, 5, (64, 32)).box == (0, 0, 30, 15)
    assert around(mask, 5, (32, 64)).box == (0, 0, 15, 30)
    assert around(box_mask(100, 100, (95, 0, 100, 100)), 0, (64, 32)).box == (0, 0, 100, 100)
    assert around(mask, 5, None).scaled == (16, 16)


def test_without_a_size_the_picture_is_padded_not_resized():
    source = Picture(noise(31, 33, 3))
    canvas = prepare(Request(image=source, mask=mask_of(box_mask(31, 33, (0, 0, 33, 31)))), None, generator())
    assert canvas.size == (40, 32) and any("reflection" in note for note in canvas.notes)
    seen = (canvas.image[0].permute(1, 2, 0).numpy() + 1) / 2
    assert np.abs(seen[:31, :33] - source.rgb()).max() <= 1e-6
    assert np.array_equal(seen[:31, 33:], seen[:31, 26:33][:, ::-1]) and np.array_equal(seen[31], seen[30])
    assert canvas.mask.min() == 1


def test_another_aspect_is_not_distorted():
    source = Picture(np.repeat(np.repeat(np.eye(4, dtype=np.uint8)[..., None] * 255, 3, axis=2), 8, axis=1))
    canvas = prepare(Request(image=source, mask=mask_of(box_mask(4, 32, (0, 0, 4, 4)))), (64, 64), generator())
    assert canvas.frame.scaled == (64, 8)  # 32x4 stays 8:1; the rest of the square is reflection


@pytest.mark.parametrize("fill", FILLS)
def test_outpaint_widens_and_paints_all_of_the_new_area(fill):
    source = Picture(noise(24, 40, 3), noise(24, 40, seed=3))
    request = Request(image=source, pad=(8, 16, 0, 24), fill=fill, mask_blur=6)
    canvas = prepare(request, None, generator())
    assert canvas.size == (48, 64) and canvas.strength.sum() == 48 * 64 - 24 * 40
    result = canvas.finish(np.zeros((64, 48, 3), np.float32))
    new = canvas.strength > 0
    assert (result.pixels[new] == 0).all() and (result.alpha[new] == 255).all()
    assert np.array_equal(result.pixels[16:40, 8:48], source.pixels)


def test_outpaint_has_a_bound():
    with pytest.raises(LdmError, match="16392") as error:
        prepare(Request(image=Picture(noise(8, 8, 3)), pad=(8192, 8192, 8192, 8192)), None, generator())
    assert error.value.code == Code.USAGE


# --- masks -----------------------------------------------------------------------------------------------------------


def test_grey_is_strength_and_blends_inside_only():
    source = Picture(np.full((16, 32, 3), 100, np.uint8))
    mask = np.repeat(np.linspace(0, 255, 32)[None], 16, axis=0).astype(np.uint8)
    canvas = prepare(Request(image=source, mask=mask_of(mask)), None, generator())
    assert np.abs(canvas.mask[0, 0].numpy() - mask / 255).max() <= 1e-6
    row = canvas.finish(np.ones((16, 32, 3), np.float32)).pixels[0, :, 0].astype(int)
    assert row[0] == 100 and (np.diff(row) >= 0).all() and row[1] < 130 and (row[9:] == 255).all()


@pytest.mark.parametrize("size", [(64, 64), (24, 40), (200, 160)])
def test_black_and_white_masks_stay_so_when_scaled(size):
    mask = box_mask(90, 110, (13, 7, 58, 61))
    canvas = prepare(Request(image=Picture(noise(90, 110, 3)), mask=mask_of(mask)), size, generator())
    work = canvas.mask[0, 0].numpy()
    assert set(np.unique(work)) == {0, 1}
    scale = np.array(canvas.frame.scaled) / (110, 90)
    x, y = np.stack([(13.5, 7.5), (57.5, 60.5)] * scale).astype(int).T
    assert work[y[0] : y[1] + 1, x[0] : x[1] + 1].all() and 0.15 < work[: canvas.frame.scaled[1]].mean() < 0.5


@pytest.mark.parametrize("radius", [0.5, 4.0, 30.0])
def test_blur_softens_inside_only_and_erases_nothing(radius):
    mask = np.zeros((60, 80), np.float32)
    mask[10:50, 20:60], mask[5, 5], mask[0:3, 70:80] = 1, 1, 0.4
    soft = soften(mask, radius)
    assert (soft[mask == 0] == 0).all() and (soft[mask > 0] > 0).all() and (soft <= mask).all()
    assert soft[10, 40] < soft[11, 40] <= soft[30, 40]
    assert soft[0, 75] > soft[2, 75] or radius < 1  # the picture's border is no rim
    assert np.array_equal(soften(np.ones_like(mask), radius), np.ones_like(mask))


def test_distance_is_euclidean():
    target = np.random.default_rng(0).random((40, 30)) < 0.02
    points = np.argwhere(target)
    grid = np.stack(np.mgrid[0:40, 0:30], axis=-1)[:, :, None]
    want = np.sqrt(((grid - points) ** 2).sum(-1)).min(-1)
    for reach in (1, 4, 9, 100):
        assert np.abs(distance(target, reach) - np.minimum(want, reach)).max() <= 1e-5


def test_eight_masks_leave_the_outside_alone(tmp_path):
    """Row F11: size, mode, inverted, empty, EXIF."""
    source, base = Picture(noise(20, 32, 3)), box_mask(20, 32, (4, 4, 20, 16))
    rgba = np.concatenate([np.full((20, 32, 3), 255, np.uint8), base[..., None]], axis=2)
    turned = tmp_path / "turned.png"
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(base))).save(turned, exif=tags.tobytes())
    masks = {
        "1": Image.fromarray(base).convert("1"),
        "P": Image.fromarray(base).convert("P"),
        "RGBA": Image.fromarray(rgba),
        "16": Picture((base.astype(np.uint16) * 257)[..., None]),
        "inverted": Image.fromarray(255 - base),
        "empty": Image.fromarray(base * 0),
        "EXIF": turned,
        "size": Image.fromarray(base).resize((64, 40), Image.Resampling.NEAREST),
    }
    for name, mask in masks.items():
        request = Request(image=source, mask=mask, resize_mask=name == "size")
        canvas = prepare(request, None, generator())
        result = canvas.finish(painting(canvas))
        kept = {"inverted": base > 0, "empty": base >= 0}.get(name, base == 0)
        changed = (result.pixels != source.pixels).any(axis=2)
        assert not changed[kept].any() and (name == "empty" or changed[~kept].mean() > 0.99), name


@pytest.mark.parametrize("size", [(20, 64), (1, 1), (32, 31), (64, 64)])
def test_a_mask_of_another_size_is_an_error_unless_asked(size):
    request = {"image": Picture(noise(32, 32, 3)), "mask": mask_of(np.full((size[1], size[0]), 255, np.uint8))}
    with pytest.raises(LdmError, match=f"{size[0]}x{size[1]}.*32x32") as error:
        prepare(Request(**request), None, generator())
    assert error.value.code == Code.USAGE
    assert prepare(Request(**request, resize_mask=True), None, generator()).mask.min() == 1


def test_a_black_mask_gives_the_input_back():
    source = Picture(noise(20, 20, 3), noise(20, 20))
    for only_masked in (False, True):
        request = Request(image=source, mask=mask_of(np.zeros((20, 20), np.uint8)), only_masked=only_masked)
        canvas = prepare(request, (64, 64), generator())
        result = canvas.finish(painting(canvas))
        assert canvas.empty and np.array_equal(result.pixels, source.pixels)
        assert any("black everywhere" in note for note in result.notes)


# --- fill ------------------------------------------------------------------------------------------------------------


def filled(fill: str, seed: int = 0, **more) -> np.ndarray:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, :32], picture[:, 32:] = (200, 0, 0), (0, 0, 200)
    picture[20:44, 20:44] = 255
    request = Request(image=Picture(picture), mask=mask_of(box_mask(64, 64, (20, 20, 44, 44))), fill=fill, **more)
    return (prepare(request, None, generator(seed)).image[0].permute(1, 2, 0).numpy() + 1) / 2


def test_fills():
    hole = slice(20, 44), slice(20, 44)
    assert (filled("original")[hole] == 1).all()
    assert np.abs(filled("colour", fill_colour=(10, 20, 30))[hole] * 255 - (10, 20, 30)).max() <= 1e-4
    blur = filled("blur")[hole]
    assert blur[..., 1].max() <= 0.01  # nothing of the white hole is left
    assert blur[12, 1, 0] > 0.6 and blur[12, 22, 2] > 0.6  # the sides flow in
    random = filled("noise")[hole]
    assert 0.45 < random.mean() < 0.55 and random.std() > 0.25
    assert np.array_equal(random, filled("noise")[hole]) and not np.array_equal(random, filled("noise", 1)[hole])
    for fill in FILLS:
        outside = np.ones((64, 64), bool)
        outside[hole] = False
        assert np.array_equal(filled(fill)[outside], filled("original")[outside])


def test_only_the_noise_fill_draws_from_the_generator():
    for fill in FILLS:
        drawn, untouched = generator(), generator()
        request = Request(image=Picture(noise(16, 16, 3)), mask=mask_of(box_mask(16, 16, (2, 2, 8, 8))), fill=fill)
        prepare(request, None, drawn)
        assert torch.equal(drawn.get_state(), untouched.get_state()) == (fill != "noise")


def test_flowing_in_handles_holes_of_any_kind():
    rgb = np.full((13, 9, 3), 0.3, np.float32)
    for mask in (np.ones((13, 9)), np.zeros((13, 9)), np.eye(13, 9)):
        assert np.abs(from_around(rgb, mask.astype(np.float32)) - 0.3).max() <= 1e-5


# --- image to image --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (33, 31), (1, 400), (64, 64)])
def test_image_to_image_keeps_the_size(size):
    source = Picture(noise(size[1], size[0], 3), noise(size[1], size[0]), matrix_profile())
    canvas = prepare(Request(image=source), None, generator())
    assert canvas.mask is None and canvas.size == tuple(-(-s // 8) * 8 for s in size)
    result = canvas.finish(painting(canvas))
    assert result.size == size and np.array_equal(result.alpha, source.alpha) and result.icc == source.icc
    assert not result.exact


def test_image_to_image_covers_another_size():
    source = Picture(noise(100, 200, 3), np.full((100, 200), 77, np.uint8))
    canvas = prepare(Request(image=source), (64, 64), generator())
    assert canvas.frame.box == (50, 0, 150, 100)
    result = canvas.finish(painting(canvas))
    assert result.size == (64, 64) and (result.alpha == 77).all()
    assert any("scaled from 100x100 to 64x64" in note for note in result.notes)
    assert cover((10, 4000), (512, 8)).scaled == (512, 8)


def test_a_grey_picture_may_become_coloured_where_nothing_of_it_stays():
    source = Picture(noise(16, 16, 1, dtype=np.uint16), icc=grey_profile())
    canvas = prepare(Request(image=source), None, generator())
    result = canvas.finish(painting(canvas))
    assert result.pixels.shape == (16, 16, 3) and result.pixels.dtype == np.uint16 and result.icc is None
    inpainted = prepare(Request(image=source, mask=mask_of(box_mask(16, 16, (0, 0, 8, 8)))), None, generator())
    assert any("grey" in note for note in inpainted.notes)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("entry", ["image", "mask"])
def test_orientation_reaches_every_entry(orientation, entry, tmp_path):
    """Row F8 for image-to-image and masks."""
    up = np.zeros((16, 32), np.uint8)
    up[:8, :20] = 255
    tags = Image.Exif()
    tags[0x0112] = orientation
    undo = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}.get(orientation)
    method = undo if undo is not None else {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 7: Image.Transpose.TRANSVERSE,
    }.get(orientation)  # fmt: skip
    stored = Image.fromarray(up)
    path = tmp_path / "turned.png"
    (stored if method is None else stored.transpose(method)).save(path, exif=tags.tobytes())
    if entry == "image":
        canvas = prepare(Request(image=path), None, generator())
        assert np.abs((canvas.image[0, 0].numpy() + 1) / 2 - up / 255).max() <= 1e-6
    else:
        canvas = prepare(Request(image=Picture(noise(16, 32, 3)), mask=path), None, generator())
        assert np.array_equal(canvas.mask[0, 0].numpy() * 255, up)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(0, 64), (-8, 64), (33, 64), (64, 2**31)])
def test_illegal_sizes_name_the_nearest(size):
    with pytest.raises(LdmError, match="nearest legal size") as error:
        prepare(Request(image=Picture(noise(8, 8, 3))), size, generator())
    assert error.value.code == Code.USAGE


def test_a_missing_image_and_a_broken_painting():
    with pytest.raises(LdmError, match="image is missing"):
        prepare(Request(), None, generator())
    canvas = prepare(Request(image=Picture(noise(8, 8, 3))), None, generator())
    masked = prepare(Request(image=Picture(noise(8, 8, 3)), pad=(8, 0, 0, 0)), None, generator())
    for one, painted in ((canvas, np.full((8, 8, 3), np.nan)), (masked, np.full((8, 16, 3), np.inf))):
        with pytest.raises(LdmError, match="non-finite") as error:
            one.finish(painted)
        assert error.value.code == Code.NUMERIC
    with pytest.raises(ValueError, match="painting"):
        canvas.finish(np.zeros((8, 9, 3)))


def test_resizing_stays_in_range():
    array = (noise(9, 9, 3) > 127).astype(np.float32)
    for size in ((40, 3), (9, 9), (1, 1)):
        out = resize(array, size, Filter.LANCZOS)
        assert out.shape == (size[1], size[0], 3) and 0 <= out.min() <= out.max() <= 1
