"""Where the quantized values of a calibration lie: in its own folder, or where a graph or a checkpoint of the bundle
refers to them.

    calibration/qweight.json   {"files": [path in the bundle, ...]}; none where all lie in calibration/qweight/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from r1v_export.errors import BundleError
from r1v_export.files import read_regular_text
from r1v_export.manifest import RelativePath
from r1v_export.quantization.artifact.documents import AGAIN
from r1v_export.quantization.artifact.qweight_layout import QweightLayout, Values
from r1v_export.strict import StrictModel, parse_json

QWEIGHT, PLACES = "qweight", "qweight.json"


@dataclass(frozen=True)
class QweightPlace:
    """Whose files the quantized values of some linears are.

    layout: that of the graphs or the checkpoint there.
    folder: of the bundle.
    prefixes: of the linears' checkpoint names.
    """

    layout: QweightLayout
    folder: str
    prefixes: tuple[str, ...] = ("",)

    def takes(self, linears: Mapping[str, Values]) -> bool:
        """Whether all of these linears, by checkpoint name, belong there."""
        return all(name.startswith(self.prefixes) and self.layout.stored(values) for name, values in linears.items())


def choose_place(places: Sequence[QweightPlace], linears: Mapping[str, Values]) -> QweightPlace | None:
    """The first place that takes all of the linears of a file; None for the calibration's own folder."""
    return next((place for place in places if place.takes(linears)), None)


class Places(StrictModel):
    """Contents of `qweight.json`: paths in the folder that holds the calibration's."""

    files: tuple[RelativePath, ...]


def placed_files(calibration: Path) -> list[Path]:
    """The files of quantized values that are not in the calibration's own folder.

    Raises:
        BundleError: `qweight.json` is damaged.
    """
    path = calibration / PLACES
    if not path.exists():
        return []
    try:
        text = read_regular_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError("A file of the calibration cannot be read.", where=path, found=error, fix=AGAIN) from error
    places = parse_json(Places, text, BundleError, f"The calibration's {PLACES} is invalid", where=path, fix=AGAIN)
    return [calibration.parent / name for name in places.files]
