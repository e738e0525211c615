"""The JSON Schemas in the repository are those of the documents."""

from __future__ import annotations

from importlib.resources import files

import pytest

from r1v_export.serialized.contract import ContractDocument
from r1v_export.serialized.document import Document, schema_text
from r1v_export.serialized.pipeline import PipelineDocument

DOCUMENTS = {"contract": ContractDocument, "pipeline": PipelineDocument}


@pytest.mark.parametrize(("name", "document"), DOCUMENTS.items(), ids=DOCUMENTS)
def test_the_committed_schema_is_the_documents(
    name: str, document: type[Document], pytestconfig: pytest.Config
) -> None:
    path = pytestconfig.rootpath / "r1v_export" / "schemas" / f"{name}.schema.json"
    if pytestconfig.getoption("--update-golden"):
        path.write_text(schema_text(document), encoding="utf-8")
    assert path.read_text(encoding="utf-8") == schema_text(document)
    assert (files("r1v_export") / "schemas" / path.name).is_file()
