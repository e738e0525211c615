"""OpenVINO's module, imported without its telemetry.

`import openvino` imports the converter of models, which sends an event to Google Analytics where the package
`openvino-telemetry` is installed, and pip installs it with openvino. For the time of the import that package is not to
be found, and the converter takes the stand-in that it has for this case.
"""

from __future__ import annotations

import sys

_TELEMETRY = "openvino_telemetry"

_found = sys.modules.get(_TELEMETRY)
sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # How an import is made to fail.
try:
    import openvino as ov
finally:
    del sys.modules[_TELEMETRY]
    if _found is not None:
        sys.modules[_TELEMETRY] = _found

__all__ = ["ov"]
