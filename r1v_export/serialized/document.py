"""What both documents have in common: strict and frozen models, read with an error that names the field, one JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict

from r1v_export.errors import BundleError
from r1v_export.files import read_regular_bytes
from r1v_export.strict import StrictModel, parse_json

DIALECT = "https://json-schema.org/draft/2020-12/schema"


class Strict(StrictModel):
    """A part of a document: no unknown fields, no conversions, not to be changed."""

    model_config = ConfigDict(strict=True)


class Document(Strict):
    """A file of a bundle."""

    def to_json(self) -> str:
        """The file's content; the same document gives the same bytes."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """JSON Schema (2020-12) of the file."""
        return {"$schema": DIALECT, **cls.model_json_schema()}


AnyDocument = TypeVar("AnyDocument", bound=Document)


def schema_text(document: type[Document]) -> str:
    """Content of a document's file below `r1v_export/schemas`."""
    return json.dumps(document.json_schema(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def read_document(document: type[AnyDocument], path: Path) -> AnyDocument:
    """Read a document of a bundle.

    Raises:
        BundleError: the file is missing, or does not follow the document's schema; the error names the first field.
    """
    fix = "fetch the bundle again, or build it again with this version"
    try:
        content = read_regular_bytes(path)
    except OSError as error:
        found = error.strerror or error
        raise BundleError(f"The bundle's {path.name} cannot be read.", where=path, found=found, fix=fix) from error
    return parse_json(document, content, BundleError, f"{path.name} is invalid", where=path, fix=fix)
