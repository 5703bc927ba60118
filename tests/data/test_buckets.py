"""Buckets have about one area, and every picture goes where the least of it is lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm.data.buckets import bucket_sizes, check_filled, crop_loss, frame, nearest_bucket
from ldm.data.settings import DataSettings
from ldm.errors import LdmError


def settings(size: int, **rule: object) -> DataSettings:
    return DataSettings.model_validate({"path": "x", "size": size, "buckets": rule})


def test_the_sizes_people_know() -> None:
    found = bucket_sizes(settings(512))
    assert found[0] == (512, 512)
    assert {(448, 576), (576, 448), (384, 640), (640, 384), (320, 768), (256, 1024)} <= set(found)
    assert all(w % 64 == 0 and h % 64 == 0 and w * h <= 512 * 512 for w, h in found)
    assert min(min(s) for s in found) == 256 and max(max(s) for s in found) == 1024
    assert bucket_sizes(DataSettings(path="x", size=40)) == ((40, 40),)


@given(st.integers(16, 2048), st.integers(8, 128), st.integers(1, 4096), st.integers(1, 4096))
def test_the_nearest_bucket_loses_least(size: int, step: int, width: int, height: int) -> None:
    try:
        sizes = bucket_sizes(settings(size, step=step))
    except LdmError:
        assert size < 2 * step
        return
    assert all(w % step == 0 and h % step == 0 and 0 < w * h <= size * size for w, h in sizes)
    assert {(h, w) for w, h in sizes} == set(sizes)
    chosen = sizes[int(nearest_bucket(sizes, np.array([[width, height]]))[0])]
    assert crop_loss((width, height), chosen) <= min(crop_loss((width, height), s) for s in sizes) + 1e-9


def test_crop_loss() -> None:
    assert crop_loss((100, 100), (64, 64)) == 0
    assert crop_loss((200, 100), (64, 64)) == crop_loss((100, 200), (64, 64)) == 0.5
    assert frame(settings(64, step=16), 400, 100) == (128, 32)


def test_mistakes() -> None:
    with pytest.raises(LdmError, match="no size is possible"):
        bucket_sizes(settings(32, step=64))
    with pytest.raises(LdmError, match="is empty"):
        bucket_sizes(settings(32, sizes=[]))
    with pytest.raises(LdmError, match="no picture falls into 32x64"):
        check_filled([(64, 64), (32, 64)], [3, 0])
