"""The one door for pictures: `open_image` in, `save_image` out, `Picture` between. docs/pictures.md is its contract."""

from ldm.images.door import DEFAULT_MAX_PIXELS, open_image
from ldm.images.picture import KEPT_TEXT, Picture, from_rgb, from_tensor, to_tensor
from ldm.images.save import as_png, free_path, picture_format, save_image

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "KEPT_TEXT",
    "Picture",
    "as_png",
    "free_path",
    "from_rgb",
    "from_tensor",
    "open_image",
    "picture_format",
    "save_image",
    "to_tensor",
]
