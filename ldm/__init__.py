"""Text-to-image software built on latent diffusion.

Importing this package is cheap: it sets privacy defaults (unless the user set them) and imports nothing heavy.
"""

import os

from ldm.version import __version__

for _name, _value in {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DO_NOT_TRACK": "1",
}.items():
    os.environ.setdefault(_name, _value)

__all__ = ["__version__"]
