"""Values in 8 bits, as integer products take them."""

from __future__ import annotations

LEVELS = 127
"""From zero to the largest value."""
MIDDLE = 128
"""What zero is in UINT8."""
