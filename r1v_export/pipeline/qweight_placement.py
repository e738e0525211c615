"""Where in a bundle the quantized values lie that a calibration stores.

The first target whose files can have them in files of their own refers to the calibration's, which lie where it looks.
Any other target stores its own.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from r1v_export.bundle import ENGINES, GRAPHS
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig
from r1v_export.files import link_or_copy
from r1v_export.model_spec import ModelSpec
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.artifact.place_qweight import place_qweight
from r1v_export.quantization.artifact.qweight_layout import GRAPH, Values
from r1v_export.quantization.artifact.qweight_places import PLACES, QWEIGHT, QweightPlace, choose_place, placed_files
from r1v_export.quantization.groups import linear_shapes
from r1v_export.quantization.recipe import Scheme
from r1v_export.quantization.rounded_weights import stored_linears
from r1v_export.quantization.sizes import GRAPH_PREFIXES, QWEIGHT_BYTES
from r1v_export.targets import registry

_GRAPH_VALUES = f"{GRAPHS}/{QWEIGHT}"


def qweight_places(config: BuildConfig) -> tuple[QweightPlace, ...]:
    """The places of a build, the first target's first; none where a calibration is made for no build."""
    places = []
    for name in config.targets:
        target = registry.get_target(name)
        prefixes = tuple(prefix for prefix, graph in GRAPH_PREFIXES if graph in target.graphs)
        if prefixes:
            places.append(QweightPlace(GRAPH, _GRAPH_VALUES, prefixes))
        places += [QweightPlace(layout, f"{ENGINES}/{name}") for layout in target.qweight_layouts]
    return tuple(places)


def copy_calibration(folder: Path, out: Path) -> None:
    """Copy a finished calibration, with its quantized values in its own folder, wherever they were; files are linked
    where that is possible."""
    shutil.copytree(folder, out, copy_function=link_or_copy, ignore=shutil.ignore_patterns(PLACES))
    for path in placed_files(folder):
        (out / QWEIGHT).mkdir(exist_ok=True)
        link_or_copy(path, out / QWEIGHT / path.name)


def place_in_bundle(calibration: Path, config: BuildConfig, checkpoint: Checkpoint) -> None:
    """Move a calibration's quantized values to the places of a build.

    Args:
        calibration: its folder in the bundle, or in that of a stage.
    """
    if places := qweight_places(config) if (calibration / QWEIGHT).is_dir() else ():
        place_qweight(Artifact.open(calibration, checkpoint), places, linked=config.calibration.artifact is not None)
        if not any((calibration / QWEIGHT).iterdir()):
            (calibration / QWEIGHT).rmdir()


def placed_bytes(config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> Mapping[str, int]:
    """How many bytes of quantized values graphs and targets, by name, have in the calibration's files.

    Args:
        schemes: of every quantized linear.
    """
    found, places, shapes = Counter[str](), qweight_places(config), linear_shapes(spec)
    for name in stored_linears(schemes):
        shape, kind = shapes[name], schemes[name].weights.type
        place = choose_place(places, {name: Values(shape, kind)})
        if place is not None:
            graph = next(graph for prefix, graph in GRAPH_PREFIXES if name.startswith(prefix))
            user = graph if place.folder == _GRAPH_VALUES else Path(place.folder).name
            found[user] += round(shape[0] * shape[1] * QWEIGHT_BYTES[kind])
    return found
