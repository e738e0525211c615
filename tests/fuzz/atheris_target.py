"""Coverage-guided fuzzing by hand; `atheris` is not in the lock: pip install atheris in an environment of your own.

    python -m tests.fuzz.atheris_target SURFACE MODEL BUNDLE [libFuzzer options and corpus folders]

MODEL and BUNDLE as made by `r1v-export synth --preset nano --vision-layers 1 --language-layers 1 MODEL` and
`r1v-export build MODEL --no-parity -o BUNDLE`; surfaces are the names in surfaces.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["r1v_export"]):
    from tests.fuzz.surfaces import surfaces
    from tests.fuzz.worker import open_input


def main() -> None:
    name, model, bundle = sys.argv[1:4]
    surface = surfaces(Path(model), Path(bundle))[name]

    def one_input(content: bytes) -> None:
        result = open_input(surface, content)
        if result["outcome"] not in ("opened", "refused"):
            raise AssertionError(f"{result['outcome']}\n{result['detail']}")

    atheris.Setup([sys.argv[0], *sys.argv[4:]], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
