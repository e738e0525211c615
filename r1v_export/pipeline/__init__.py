"""From checkpoint to bundle in stages: each `inputs -> outputs` with a fingerprint, atomic, resumable."""
