"""Many requests at a time over one model: `BatchingRunner.submit`, see `batching_runner`."""
