"""The pictures of docs/your-subject.md, made by the commands that stand there: each is run as it is written.

    python -m benchmarks.tutorial_pictures [--page docs/your-subject.md] [--into docs/images/subject]

What a command makes under the name NAME (`photos`, `--out NAME`, `--out NAME.png`) becomes NAME.png, its pictures side
by side, wherever the page shows images/.../NAME.png. A command that fails ends it.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from benchmarks.startup import LDM
from ldm.images import open_image

PAGE, INTO = Path("docs/your-subject.md"), Path("docs/images/subject")
HEIGHT, GAP = 128, 8  # of what is shown; small pictures are enlarged
COMMAND = re.compile(r"^    ldm (.+)$", re.MULTILINE)
SHOWN = re.compile(r"!\[[^\]]*\]\(images/\S*?([\w-]+)\.png\)")


def commands(page: str) -> list[list[str]]:
    """The arguments of each, in their order."""
    return [shlex.split(line) for line in COMMAND.findall(page)]


def made(folder: Path, name: str) -> list[Path]:
    """Pictures of that name: one file, or all of a folder."""
    one = folder / f"{name}.png"
    found = [one] if one.is_file() else sorted((folder / name).glob("*.png"))
    if not found:
        raise FileNotFoundError(f"the page shows {name}.png, and no command has made {one.name} or a folder {name}")
    return found


def side_by_side(files: list[Path]) -> Image.Image:
    pictures = [Image.fromarray(open_image(file).pixels) for file in files]  # of 8 bits, as our commands write them
    pictures = [p.resize((round(p.width * HEIGHT / p.height), HEIGHT), Image.Resampling.LANCZOS) for p in pictures]
    strip = Image.new("RGB", (sum(p.width + GAP for p in pictures) - GAP, HEIGHT), "white")
    left = 0
    for picture in pictures:
        strip.paste(picture, (left, 0))
        left += picture.width + GAP
    return strip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--into", type=Path, default=INTO)
    args = parser.parse_args()
    page = args.page.read_text("utf-8")
    with tempfile.TemporaryDirectory() as place:
        for words in commands(page):
            print("ldm", shlex.join(words), flush=True)
            if (status := subprocess.run([LDM, *words], cwd=place).returncode) != 0:
                return status
        args.into.mkdir(parents=True, exist_ok=True)
        for name in dict.fromkeys(SHOWN.findall(page)):
            side_by_side(made(Path(place), name)).save(args.into / f"{name}.png", optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
