"""Quantized values brought to where a bundle's graphs or checkpoints refer to them: the bundle holds them once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from r1v_export.checkpoint.tensor_writer import PAGE_BYTES, NewTensor, write_tensors
from r1v_export.files import clone_or_copy, write_atomically
from r1v_export.manifest import to_json
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.artifact.qweight_layout import GRAPH
from r1v_export.quantization.artifact.qweight_places import PLACES, Places, QweightPlace, choose_place


def place_qweight(artifact: Artifact, places: Sequence[QweightPlace], *, linked: bool = False) -> None:
    """Move each file of `calibration/qweight/` to the first place that takes its linears; one that has another layout
    is written in that of the place. The artifact is to be opened again.

    Args:
        artifact: in the folder `calibration` of a bundle, or of a stage that writes one.
        places: folders of the same bundle.
        linked: whether the files may be hard links to another calibration's. Readers of graphs refuse weights that have
            several, so that these are copied.
    """
    bundle, placed = artifact.folder.parent, []
    for path, linears in artifact.own_files().items():
        place = choose_place(places, {name: artifact.values(name) for name in linears})
        if place is None:
            continue
        target = bundle / place.folder / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if any(artifact.layouts[name] is not place.layout for name in linears):
            _write(artifact, linears, place, target)
            path.unlink()
        elif linked and place.layout is GRAPH:
            clone_or_copy(path, target)
            path.unlink()
        else:
            path.replace(target)
        placed.append(target.relative_to(bundle).as_posix())
    if placed:
        text = to_json(Places(files=tuple(placed)).model_dump(mode="json"))
        write_atomically(artifact.folder / PLACES, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def _write(artifact: Artifact, linears: Sequence[str], place: QweightPlace, target: Path) -> None:
    """Write a file anew, holding one linear at a time."""
    reader = _Encoded(artifact, place)
    tensors = []
    for linear in linears:
        expected = place.layout.stored(artifact.values(linear))
        assert expected is not None, "the place takes the linear"
        names = place.layout.names(linear, artifact.spec)
        dtype, (rows, *others) = expected
        shape = (rows // len(names), *others)
        tensors += [NewTensor(name, dtype, shape, partial(reader.chunks, linear, name)) for name in names]
    tensors.sort(key=lambda tensor: tensor.name)  # as a calibration writes them
    for _ in write_tensors(target.parent, tensors, file=target.name, alignment=PAGE_BYTES):
        pass


class _Encoded:
    """The tensors of linears in another layout. Those of the last one are kept: they follow each other."""

    def __init__(self, artifact: Artifact, place: QweightPlace) -> None:
        self._artifact, self._place = artifact, place
        self._kept: tuple[str, Mapping[str, Tensor]] = ("", {})

    def chunks(self, linear: str, tensor: str) -> list[Tensor]:
        if self._kept[0] != linear:
            quantized = self._artifact.linear(linear)
            self._kept = (linear, self._place.layout.tensors(linear, quantized, self._artifact.spec))
        return [self._kept[1][tensor].flatten()]
