"""Wheels for a machine without a network, to which only so much can be carried at a time.

Here, where there is a package index (benchmarks/gpu/carried is ignored by git):

    python benchmarks/gpu/carry.py split --out benchmarks/gpu/carried

downloads the wheels for CPython 3.12 and cuts them into parts of at most 40 MiB with their SHA-256 in `parts.json`.
There, a part with each call (the folder may hold one part or all), until the wheels are whole:

    python benchmarks/gpu/carry.py join benchmarks/gpu/carried --store /tmp/r1v-carried
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

PACKAGES = (
    "onnxruntime-gpu==1.31.1",
    "pydantic==2.14.3",
    "pydantic-core==2.50.4",
    "annotated-types==0.8.0",
    "typing-inspection==0.4.5",
    "typing-extensions==4.16.0",
    "onnx-ir==1.1.0",
)
"""What such a machine lacks, or has in another version; torch, onnx and the CUDA libraries are there."""
TENSORRT_RTX = (
    "tensorrt-rtx-cu13==1.7.1.116",
    "tensorrt-rtx-cu13-bindings==1.7.1.116",
    "tensorrt-rtx-cu13-libs==1.7.1.116",
)
"""With `--tensorrt-rtx`."""
PLATFORMS = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")
PART_BYTES = 40 << 20
INDEX = "parts.json"
SITE = "site"
"""Folder of the store that the wheels are unpacked into: for PYTHONPATH."""


def download(packages: tuple[str, ...], folder: Path) -> list[Path]:
    """Wheels for CPython 3.12 on x86-64, without what they depend on."""
    platforms = [word for name in PLATFORMS for word in ("--platform", f"{name}_x86_64")]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--python-version", "3.12"]
    subprocess.run([*command, *platforms, "--implementation", "cp", "-d", folder, *packages], check=True)
    return sorted(folder.glob("*.whl"))


def split(files: list[Path], out: Path, part_bytes: int = PART_BYTES) -> dict[str, Any]:
    """Cut files into parts next to an index that says what they are."""
    out.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {}
    for path in files:
        parts = []
        with path.open("rb") as file:
            while content := file.read(part_bytes):
                name = f"{path.name}.{len(parts):03}"
                (out / name).write_bytes(content)
                parts.append({"name": name, "sha256": hashlib.sha256(content).hexdigest()})
        index[path.name] = {"sha256": sha256(path), "parts": parts}
    (out / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return index


def join(folder: Path, store: Path) -> dict[str, Any]:
    """Take what parts a folder holds into a store, and unpack the wheels that are whole.

    Returns: wheel -> "unpacked", or the parts that are missing.

    Raises:
        SystemExit: a part or a wheel is not what the index says.
    """
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    site = store / SITE
    site.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for name, wheel in index.items():
        for part in wheel["parts"]:
            here = folder / part["name"]
            if here.exists():
                require(here, part["sha256"])
                shutil.copyfile(here, store / part["name"])
        missing = [part["name"] for part in wheel["parts"] if not (store / part["name"]).exists()]
        found[name] = {"missing": missing} if missing else "unpacked"
        if not missing and not (store / f"{name}.done").exists():
            with tempfile.TemporaryDirectory(dir=store) as scratch:
                whole = Path(scratch, name)
                with whole.open("wb") as file:
                    for part in wheel["parts"]:
                        file.write((store / part["name"]).read_bytes())
                require(whole, wheel["sha256"])
                with zipfile.ZipFile(whole) as archive:
                    archive.extractall(site)
            (store / f"{name}.done").touch()
    return found


def require(path: Path, expected: str) -> None:
    """Stop unless a file has a hash."""
    if (actual := sha256(path)) != expected:
        raise SystemExit(f"{path} is damaged: SHA-256 {actual}, expected {expected}")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    cutting = commands.add_parser("split")
    cutting.add_argument("--out", type=Path, required=True)
    cutting.add_argument("--tensorrt-rtx", action="store_true", help="carry TensorRT-RTX, too")
    joining = commands.add_parser("join")
    joining.add_argument("folder", type=Path)
    joining.add_argument("--store", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.command == "join":
        print(json.dumps(join(arguments.folder, arguments.store), indent=1))
        return
    with tempfile.TemporaryDirectory() as wheels:
        packages = PACKAGES + (TENSORRT_RTX if arguments.tensorrt_rtx else ())
        split(download(packages, Path(wheels)), arguments.out)
    print(f"{len(list(arguments.out.glob('*.whl.*')))} parts in {arguments.out}")


if __name__ == "__main__":
    main()
