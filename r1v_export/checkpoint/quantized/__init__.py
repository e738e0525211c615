"""Checkpoints whose linears are stored as quantized values and scales: one file per format, each with a table of its
tensors.

`detect.read_format` says which format a folder is in, `quantized_linears.find_quantized` finds and checks its linears
from headers, and `StoredLinear.decode` reads one. Whatever the layout, a decoded linear has its quantized values in the
shape [out, in] and its scales in float32, bit for bit as they were stored.
"""
