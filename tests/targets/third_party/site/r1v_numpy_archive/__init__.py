"""A target in a package of its own: the weights in one NumPy archive, computed by PyTorch."""
