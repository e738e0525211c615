"""The files of a bundle that a runtime reads instead of this package: `contract.json` and `pipeline.json`."""
