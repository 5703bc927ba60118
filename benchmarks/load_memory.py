"""Peak memory of loading a file of the size of SD 1.5, above what the imports take: promised <= 1.2x of its weights.

    python -m benchmarks.load_memory                 # four cases in fresh processes, about 20 s, 4.3 GB of disk
    python -m benchmarks.load_memory --disk FOLDER --write

Random weights under the original names. "loaded" is the peak while `load_parts` runs; "read" the peak when every weight
was read once after it, which is what the first picture does. All relative to the weights in the target type.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASES = [("F32", "float32"), ("F16", "float16"), ("F16", "float32"), ("F32", "float16")]


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of loading an SD-1.5-sized file.")
    parser.add_argument("--disk", help="a folder with 4.5 GB to spare")
    parser.add_argument("--one", nargs=2, metavar=("FILE", "DTYPE"), help="measure one file in this process")
    parser.add_argument("--write", action="store_true", help="write docs/results/load_memory.json")
    options = parser.parse_args()
    if options.one:
        measure(Path(options.one[0]), options.one[1])
        return
    print(f"{'file':>5} {'target':>9} {'weights':>9} {'loaded':>8} {'read':>8} {'seconds':>8}")
    worst, figures = 0.0, {}
    for stored in sorted({stored for stored, _ in CASES}):
        with tempfile.TemporaryDirectory(dir=options.disk) as folder:
            path = Path(folder) / "sd15.safetensors"
            make(path, stored)
            for dtype in (dtype for s, dtype in CASES if s == stored):
                command = [sys.executable, __file__, "--one", str(path), dtype]
                line = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                size, loaded, read, seconds = map(float, line.split())
                worst = max(worst, loaded, read)
                figures[f"{stored} file, {dtype}"] = {
                    "weights_gb": round(size / 1e9, 2),
                    "loaded": loaded,
                    "read": read,
                }
                print(f"{stored:>5} {dtype:>9} {size / 1e9:>6.2f} GB {loaded:>7.2f}x {read:>7.2f}x {seconds:>8.1f}")
    print(f"worst {worst:.2f}x, promised 1.20x")
    if options.write:
        from benchmarks.machine import write as record

        print(record("load_memory", figures))
    if worst > 1.2:
        raise SystemExit(1)


def make(path: Path, stored: str) -> None:
    """Random numbers in the layout of SD 1, one tensor at a time."""
    from ldm.store.build import build
    from ldm.store.configs import family_config
    from ldm.store.parts import Parts
    from ldm.store.save import single_state
    from ldm.store.weights import TORCH

    names = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
    unet, vae, tower = (build(name, family_config("sd1", role), role)[0] for role, name in names.items())
    model = Parts("sd15", "sd1", path, "", unet, vae, ((None, tower),), {}, "epsilon", "")
    header: dict[str, object] = {}
    end, order = 0, single_state(model)
    width = TORCH[stored].itemsize
    for name, tensor in order.items():
        begin, end = end, end + tensor.numel() * width
        header[name] = {"dtype": stored, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    write(path, header, [(tensor.numel(), TORCH[stored]) for tensor in order.values()])


def write(path: Path, header: dict[str, object], tensors: list[tuple[int, object]]) -> None:
    import json

    import torch

    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    noise = torch.randn(1 << 20) * 0.02
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for count, dtype in tensors:
            repeated = noise.repeat(-(-count // len(noise)))[:count].to(dtype)  # type: ignore[call-overload]
            file.write(repeated.view(torch.uint8).numpy().data)


def measure(path: Path, dtype: str) -> None:
    """Prints: bytes of the weights, peak while loading and after reading them (x the weights), seconds."""
    import torch

    import ldm.store.single  # noqa: F401  (a lazy import of load_parts)
    from ldm.models.tokenizer import clip_tokenizer
    from ldm.store.parts import load_parts

    torch.set_num_threads(1)
    clip_tokenizer()  # its tables, and the lazy imports, belong to the imports
    before = resident("VmRSS")
    start = time.monotonic()
    parts = load_parts(path, dtype=getattr(torch, dtype))
    seconds = time.monotonic() - start
    loaded = resident("VmHWM") - before
    networks = [parts.unet, parts.vae, *(tower for _, tower in parts.towers)]
    size = sum(p.numel() * p.element_size() for network in networks for p in network.parameters())
    for network in networks:
        for weight in network.parameters():
            weight.view(-1)[::512].sum()
    print(size, loaded / size, (resident("VmHWM") - before) / size, seconds)


def resident(field: str) -> int:
    """Bytes from /proc: VmRSS is now, VmHWM the peak so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this benchmark reads /proc and needs Linux")


if __name__ == "__main__":
    main()
