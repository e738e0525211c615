"""Everything that reads what a user or a stranger wrote: how an input is made, and how it is opened and then used."""

from __future__ import annotations

import io
import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import onnx
import yaml
from PIL import Image

from r1v_export.build_file import load_config
from r1v_export.bundle import read_generation_config, read_spec
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.tensor_file import read_header
from r1v_export.config import BuildConfig
from r1v_export.errors import R1VError
from r1v_export.manifest import hash_file, read_manifest
from r1v_export.pipeline.verify import verify_bundle
from r1v_export.processing.load_image import load_image
from r1v_export.processing.pipeline_document import open_files
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.progress import Progress
from r1v_export.quantization import recipe
from r1v_export.quantization.calibration.raw_examples import jsonl_examples
from r1v_export.serialized.contract import ContractDocument
from r1v_export.serialized.document import read_document
from r1v_export.targets.gguf.write.files import write_gguf
from r1v_export.targets.openvino.engine_file import ENGINE_FILE, read_engine_file
from tests.fuzz.mutators import STRINGS, mutate_bytes, mutate_json, mutate_value

TEXT = "What is 3 + 4? Größe 中 \U0001f642\n"


@dataclass(frozen=True)
class Surface:
    """One kind of input.

    Attributes:
        make: an input from a seeded generator.
        sound: one that opens.
        use: opens it and uses what was opened; raises what a user would meet.
        weight: of all inputs.
    """

    make: Callable[[Random], bytes]
    sound: bytes
    use: Callable[[bytes], None]
    weight: int = 1


def surfaces(model: Path, bundle: Path) -> dict[str, Surface]:
    """Every surface, over a sound checkpoint and its bundle, both small."""
    found = {name: _of_checkpoint(model, name, weight) for name, weight in _CHECKPOINT_FILES.items()}
    for name in ("vocab.json", "merges.txt"):
        found[name] = _of_older_tokenizer(model, name)
    found["model.safetensors"] = _safetensors(model / "model.safetensors")
    found["model.gguf"] = _gguf(model)
    for name, weight in (("manifest.json", 2), ("model.json", 1), ("contract.json", 1), ("pipeline.json", 1)):
        found[f"bundle {name}"] = _of_bundle(bundle, name, weight)
    found["bundle tokenizer.json"] = _of_bundle(bundle, "tokenizer.json", 1)
    text = (bundle / "build.yaml").read_bytes()
    use = _use_bundle(bundle, "build.yaml")
    found["bundle build.yaml"] = Surface(lambda random: _yaml(yaml.safe_load(text), random), text, use)
    for name in ("graphs/projector.onnx", "engines/onnxruntime/projector.onnx"):
        content = (bundle / name).read_bytes()
        found[f"bundle {name}"] = Surface(_onnx(content), content, _use_bundle(bundle, name))
    png = io.BytesIO()
    Image.new("RGB", (64, 48)).save(png, "PNG")
    found["image"] = Surface(_image, png.getvalue(), _use_image, 4)
    shipped = (recipe.FOLDER / f"{recipe.names()[0]}.yaml").read_bytes()
    found["recipe"] = Surface(_recipe, shipped, _use_recipe(model), 2)
    build_file = json.dumps(_BUILD).encode()
    found["build file"] = Surface(lambda random: _yaml(_BUILD, random), build_file, _use_build_file, 2)
    engine = json.dumps(_OPENVINO).encode()
    found["openvino engine.json"] = Surface(lambda random: mutate_json(_OPENVINO, random), engine, _use_openvino)
    found["calibration"] = Surface(_calibration, json.dumps(_ROW).encode(), _use_calibration, 2)
    return found


_CHECKPOINT_FILES = {
    "config.json": 5, "tokenizer.json": 2, "tokenizer_config.json": 1, "added_tokens.json": 1,
    "special_tokens_map.json": 1, "generation_config.json": 2, "preprocessor_config.json": 1,
    "model.safetensors.index.json": 1, "quantize_config.json": 1, "hf_quant_config.json": 1,
}  # fmt: skip
_ROW = {"image": "a.png", "prompt": "How many?", "reasoning": "One, two.", "answer": "2"}
_BUILD: dict[str, Any] = {
    "model": "r1v-nano", "precision": "fp8", "targets": {"onnxruntime": {}}, "device": "cpu", "recipe": "fp8",
    "calibration": {"samples": 8}, "parity": {"questions": 2, "enabled": False},
}  # fmt: skip
_OPENVINO: dict[str, Any] = {
    "options": {"matmul": "bfloat16", "int4_inputs": "exact"},
    "weights": {"vision": {"a": {
        "file": "graphs/vision.data", "offset": 64, "size_bytes": 24, "type": "f32", "shape": [2, 3],
    }}},
}  # fmt: skip
_MADE_UP: dict[str, Any] = {
    "added_tokens.json": {"<think>": 639}, "special_tokens_map.json": {"eos_token": "<|im_end|>"},
    "preprocessor_config.json": {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "size": 448},
    "model.safetensors.index.json": {"metadata": {}, "weight_map": {"a": "model.safetensors"}},
    "quantize_config.json": {"bits": 4, "group_size": 128, "sym": True, "checkpoint_format": "gptq"},
    "hf_quant_config.json": {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}},
}  # fmt: skip


@contextmanager
def _linked(folder: Path, changed: str, content: bytes) -> Iterator[Path]:
    """A copy of a folder by links, with one file of another content."""
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        for path in folder.rglob("*"):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and name != changed:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(path, root / name) if path.stat().st_dev == root.stat().st_dev else (root / name).symlink_to(
                    path
                )
        (root / changed).parent.mkdir(parents=True, exist_ok=True)
        (root / changed).write_bytes(content)
        yield root


def _of_checkpoint(model: Path, name: str, weight: int) -> Surface:
    path = model / name
    value = json.loads(path.read_text()) if path.exists() else _MADE_UP[name]
    if name == "model.safetensors.index.json":
        value = {
            "metadata": {},
            "weight_map": dict.fromkeys(read_header(model / "model.safetensors"), "model.safetensors"),
        }

    def use(content: bytes) -> None:
        with _linked(model, name, content) as folder:
            _use_checkpoint(folder)

    return Surface(lambda random: mutate_json(value, random), json.dumps(value).encode(), use, weight)


def _of_older_tokenizer(model: Path, name: str) -> Surface:
    """`vocab.json` or `merges.txt`, in the place of tokenizer.json."""
    bpe = json.loads((model / "tokenizer.json").read_text())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in bpe["merges"]]
    sound = {"vocab.json": json.dumps(bpe["vocab"]).encode(), "merges.txt": "\n".join(merges).encode()}

    def make(random: Random) -> bytes:
        return mutate_json(bpe["vocab"], random) if name == "vocab.json" else mutate_bytes(sound[name], random)

    def use(content: bytes) -> None:
        with _linked(model, name, content) as folder:
            (folder / "tokenizer.json").unlink()
            for other in sound.keys() - {name}:
                (folder / other).unlink(missing_ok=True)
                (folder / other).write_bytes(sound[other])
            _use_checkpoint(folder)

    return Surface(make, sound[name], use)


def _use_checkpoint(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    checkpoint.read(next(iter(checkpoint.tensors)))
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.decode(tokenizer.encode_text(TEXT)) == TEXT


def _safetensors(path: Path) -> Surface:
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    few = dict(sorted(entries, key=lambda item: item[1]["data_offsets"])[:4])
    size = max(entry["data_offsets"][1] for entry in few.values())
    text = json.dumps(few).encode()
    sound = struct.pack("<Q", len(text)) + text + bytes(size)

    def make(random: Random) -> bytes:
        changed = mutate_json(few, random) if random.randrange(5) else json.dumps(few).encode()
        claimed = random.choice([len(changed)] * 8 + [0, 1, 2**63, 2**64 - 1, len(changed) + 1])
        whole = struct.pack("<Q", claimed) + changed + bytes(size)
        return mutate_bytes(whole, random) if random.randrange(4) == 0 else whole

    return Surface(make, sound, _use_safetensors, 3)


def _gguf(model: Path) -> Surface:
    with tempfile.TemporaryDirectory() as folder:
        write_gguf(Checkpoint.open(model), None, BuildConfig(precision="bf16"), Path(folder))
        sound, mmproj = ((Path(folder) / name).read_bytes() for name in ("model.gguf", "mmproj.gguf"))

    def make(random: Random) -> bytes:
        if random.randrange(3) == 0:
            return mutate_bytes(sound, random)
        place = random.randrange(min(len(sound), 20_000))  # keys, vocabulary and the list of tensors
        return sound[:place] + random.randbytes(random.choice((1, 4, 8))) + sound[place + random.choice((1, 4, 8)) :]

    def use(content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, written in (("model.gguf", content), ("mmproj.gguf", mmproj)):
                (Path(folder) / name).write_bytes(written)
            checkpoint = Checkpoint.open(Path(folder) / "model.gguf")
            for name in ("language_model.model.norm.weight", "mlp1.1.weight"):
                assert tuple(checkpoint.read(name).shape) == checkpoint.tensors[name].shape

    return Surface(make, sound, use, 2)


def _use_safetensors(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(content)
        for tensor in read_header(path).values():
            assert tuple(tensor.read().shape) == tensor.shape


def _of_bundle(bundle: Path, name: str, weight: int) -> Surface:
    sound = (bundle / name).read_bytes()
    value = json.loads(sound)
    return Surface(lambda random: mutate_json(value, random), sound, _use_bundle(bundle, name), weight)


def _use_bundle(bundle: Path, name: str) -> Callable[[bytes], None]:
    def use(content: bytes) -> None:
        with _linked(bundle, name, content) as folder:
            if name != "manifest.json":
                _make_manifest_fit(folder, name)
            read_manifest(folder)
            if name.endswith(".json") and name != "manifest.json":
                _ignoring_errors(lambda: read_document(ContractDocument, folder / "contract.json"))
                _ignoring_errors(lambda: open_files(folder))
                _ignoring_errors(lambda: read_generation_config(folder))
                _ignoring_errors(lambda: read_spec(folder))
            verify_bundle(folder, Progress(quiet=True))

    return use


def _ignoring_errors(read: Callable[[], object]) -> None:
    """Each reader gets the file, though one before has refused it."""
    with suppress(R1VError):
        read()


def _use_openvino(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / ENGINE_FILE).write_bytes(content)
        read_engine_file(Path(folder))


def _make_manifest_fit(folder: Path, changed: str) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for stage in manifest["stages"].values():
        if changed in stage["files"]:
            stage["files"][changed] = hash_file(folder / changed).model_dump()
    path.unlink()
    path.write_text(json.dumps(manifest))


def _onnx(original: bytes) -> Callable[[Random], bytes]:
    def make(random: Random) -> bytes:
        if random.randrange(3) == 0:
            return mutate_bytes(original, random)
        model = onnx.load_model_from_string(original)
        tensor = random.choice(list(model.graph.initializer))
        entries = list(tensor.external_data)
        match random.randrange(5):
            case 0 if entries:
                value = random.choice([*STRINGS, "-1", "9" * 30, "1e3", "4", "/etc/passwd"])
                random.choice(entries).value = value.encode("utf-8", "replace").decode()
            case 1:
                tensor.dims.append(random.choice([0, 1, -1, 2**40, 2**62]))
            case 2:
                tensor.data_type = random.choice([0, 1, 7, 8, 22, 99, -1])
            case 3:
                node = random.choice(list(model.graph.node))
                node.op_type, node.domain = random.choice([("Loop", ""), ("X" * 9000, ""), (node.op_type, "com.evil")])
            case _:
                del model.graph.node[random.randrange(len(model.graph.node))]
        return model.SerializeToString()

    return make


def _image(random: Random) -> bytes:
    size = random.choice([(1, 1), (3, 5), (64, 48), (1, 3000), (300, 1)])
    mode = random.choice(["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "F"])
    image = Image.frombytes("L", size, random.randbytes(size[0] * size[1])).convert("RGB" if mode == "P" else "L")
    image = image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode)
    buffer = io.BytesIO()
    for kind in random.sample(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"], 6):
        try:
            image.save(buffer, kind)
            break
        except (OSError, ValueError):  # this format does not have this mode
            buffer = io.BytesIO()
    return mutate_bytes(buffer.getvalue(), random) if random.randrange(8) else buffer.getvalue()


def _use_image(content: bytes) -> None:
    refused: R1VError | None = None
    for policy in ("as_displayed", "published"):
        try:
            image = load_image(content, policy)
            assert image.mode == "RGB"
            image.resize((28, 28))
        except R1VError as error:
            refused = error
    if refused is not None:
        raise refused


def _yaml(value: Any, random: Random) -> bytes:
    changed = mutate_value(value, random)
    try:
        text = yaml.safe_dump(changed, allow_unicode=True)
    except (yaml.YAMLError, ValueError, RecursionError):
        text = json.dumps(changed)
    if random.randrange(6) == 0:
        text += random.choice(
            ["a: &a [*a]\n", "b: {<<: {c: 1}}\n", "? [x]\n: y\n", "d: !!python/name:os.system\n", "e: 1:2:3\n"]
        )
    raw = text.encode("utf-8", "surrogatepass")
    return mutate_bytes(raw, random) if random.randrange(5) == 0 else raw


def _recipe(random: Random) -> bytes:
    name = random.choice(recipe.names())
    return _yaml(yaml.safe_load((recipe.FOLDER / f"{name}.yaml").read_text()), random)


def _use_recipe(model: Path) -> Callable[[bytes], None]:
    spec = Checkpoint.open(model).spec

    def use(content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "r.yaml"
            path.write_bytes(content)
            loaded = recipe.load(path)
        assert recipe.parse(loaded.to_yaml()) == loaded
        recipe.resolve(loaded, spec)

    return use


def _use_build_file(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "b.yaml"
        path.write_bytes(content)
        load_config(path, {})


def _calibration(random: Random) -> bytes:
    lines = [mutate_json(_ROW, random) if random.randrange(2) else json.dumps(_ROW).encode() for _ in range(3)]
    return b"\n".join(lines)


def _use_calibration(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Image.new("RGB", (8, 8)).save(Path(folder) / "a.png")
        path = Path(folder) / "c.jsonl"
        path.write_bytes(content)
        for example in jsonl_examples(path, 100):
            example.load_images()
