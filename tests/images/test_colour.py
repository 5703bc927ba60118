"""Colour profiles against littleCMS (through Pillow), and their round trips."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from ldm.images import Picture, from_rgb
from ldm.images.colour import encode, from_srgb, read_profile, space, to_srgb
from tests.images.make import ADOBE_TO_D50, fixed, gamma_curve, grey_profile, matrix_profile, profile, table_profile

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def by_littlecms(array: np.ndarray, icc: bytes) -> np.ndarray:
    own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB")
    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    out = ImageCms.profileToProfile(image, own, srgb, ImageCms.Intent.RELATIVE_COLORIMETRIC, "RGB")
    assert out is not None
    return np.asarray(out, np.float32) / 255


@pytest.mark.parametrize("icc", [matrix_profile(2.2), matrix_profile(1.0), SRGB], ids=["adobe", "linear", "srgb"])
def test_matrix_profiles_agree_with_littlecms(icc):
    array = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert read_profile(icc) is not None
    difference = np.abs(to_srgb(array, icc) - by_littlecms(array, icc))
    assert difference.max() <= 2 / 255


def test_grey_profile_agrees_with_littlecms():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    assert np.abs(to_srgb(ramp, grey_profile()) - by_littlecms(ramp, grey_profile())).max() <= 2 / 255


def test_table_profiles_go_through_littlecms():
    icc = table_profile()
    array = np.random.default_rng(1).integers(40, 200, (32, 32, 3)).astype(np.uint8)
    assert space(icc) == "RGB" and read_profile(icc) is None
    assert np.abs(to_srgb(array, icc) - by_littlecms(array, icc)).max() <= 1 / 255
    soft = np.random.default_rng(1).integers(90, 160, (32, 32, 3)).astype(np.uint8)  # 8-bit Lab is coarse near the edge
    assert np.abs(to_srgb(soft, icc) - to_srgb(soft, matrix_profile(1.8))).max() <= 4 / 255


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("icc", [None, matrix_profile(), SRGB], ids=["none", "adobe", "srgb"])
def test_in_gamut_colours_come_back_to_the_same_samples(icc, dtype):
    top = np.iinfo(dtype).max
    array = np.random.default_rng(2).integers(top // 3, top // 2, (40, 30, 3)).astype(dtype)
    picture = Picture(array, icc=icc)
    back = from_rgb(picture.rgb(), picture)
    steps = np.abs(back.pixels.astype(int) - array.astype(int)).max()
    assert back.icc == icc and back.pixels.dtype == dtype
    assert steps <= (0 if dtype == np.uint8 else 2)


def test_grey_comes_back_to_the_same_samples():
    array = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)[40:]
    for icc in (None, grey_profile()):
        picture = Picture(array, icc=icc)
        back = from_rgb(picture.rgb(), picture)
        assert back.pixels.shape == array.shape
        assert np.abs(back.pixels.astype(int) - array.astype(int)).max() <= 2


def test_parametric_curve_is_the_srgb_curve():
    para = b"para" + bytes(4) + b"\0\3\0\0" + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    tags = {n: b"XYZ " + bytes(4) + fixed(*ADOBE_TO_D50[:, i]) for i, n in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    icc = profile(b"mntr", b"RGB ", b"XYZ ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), para))
    found = read_profile(icc)
    assert found is not None
    assert np.abs(encode(found.curves[0]) - np.linspace(0, 1, 65536)).max() <= 1e-3
    array = np.random.default_rng(3).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    assert np.abs(to_srgb(array, icc) - by_littlecms(array, icc)).max() <= 2 / 255


@pytest.mark.parametrize(  # named, because a profile holds the second of its making
    "damage",
    [b"", b"x" * 200, SRGB[:100], SRGB[:300], b"\0" * 36 + b"acsp" + b"\xff" * 200],
    ids=["empty", "letters", "header cut", "table cut", "false table"],
)
def test_damaged_profiles_are_recognised(damage):
    assert space(damage) in (None, "RGB")
    if len(damage) != 300:
        assert space(damage) is None


def test_from_srgb_is_monotone_in_grey():
    ramp = np.repeat(np.linspace(0, 1, 300)[:, None, None], 3, axis=2)
    for icc, channels in ((None, 1), (grey_profile(), 1), (matrix_profile(), 3)):
        out = from_srgb(ramp, icc, channels)
        assert (np.diff(out, axis=0) >= 0).all() and out.min() >= 0 and out.max() <= 1 + 1e-9


def test_curve_of_a_table_and_of_a_gamma():
    table = b"curv" + bytes(4) + b"\0\0\1\0" + (np.linspace(0, 1, 256) ** 2.0 * 65535).astype(">u2").tobytes()
    tags = {n: b"XYZ " + bytes(4) + fixed(*ADOBE_TO_D50[:, i]) for i, n in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    by_table = profile(b"mntr", b"RGB ", b"XYZ ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), table))
    by_gamma = profile(b"mntr", b"RGB ", b"XYZ ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma_curve(2.0)))
    first, second = read_profile(by_table), read_profile(by_gamma)
    assert first is not None and second is not None
    assert np.abs(first.curves[1] - second.curves[1]).max() <= 1e-4
