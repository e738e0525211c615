"""A bundle as a Triton model repository: `repository` writes it, `models/` runs in Triton's Python backend."""
