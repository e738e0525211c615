"""Devices that builds are judged for, with their peak rates as their makers publish them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from r1v_export.errors import UsageError
from r1v_export.quoting import did_you_mean


@dataclass(frozen=True)
class DeviceSpec:
    """Peak rates of one GPU: dense (without structured sparsity), matrix units, 32-bit accumulation.

    driver_names: what the driver calls it; variants with other rates (PCIe, NVL, Max-Q, MIG) have other names.
    tflops: by the type of the operands, in 1e12 operations per second; a type that is missing has no matrix units here
        and computes as `float16`.
    """

    name: str
    compute_capability: int
    tflops: Mapping[str, float]
    memory_gb: float
    memory_gb_per_s: float
    source: str
    driver_names: tuple[str, ...] = ()

    def flops_per_s(self, arithmetic: str) -> float:
        """Peak rate for an arithmetic; that of float16 if the device has no rate for it."""
        return self.tflops.get(arithmetic, self.tflops["float16"]) * 1e12

    @property
    def bytes_per_s(self) -> float:
        """Peak memory bandwidth in bytes per second."""
        return self.memory_gb_per_s * 1e9


def _rates(
    float32: float, float16: float, eight_bits: float | None = None, int8: float | None = None
) -> dict[str, float]:
    """`float32` is what TF32 matrix units give; bfloat16 runs as float16 does."""
    rates = {"float32": float32, "float16": float16, "bfloat16": float16}
    if eight_bits is not None:
        rates |= {"float8e4m3fn": eight_bits, "int8": eight_bits}
    if int8 is not None:
        rates["int8"] = int8
    return rates


DEVICES: dict[str, DeviceSpec] = {
    device.name: device
    for device in (
        DeviceSpec(
            "A100",
            80,
            _rates(156, 312, int8=624),
            80,
            2039,
            "NVIDIA A100 data sheet, SXM 80 GB",
            ("NVIDIA A100-SXM4-80GB",),
        ),
        DeviceSpec(
            "H100",
            90,
            _rates(494.7, 989.4, 1978.9),
            80,
            3350,
            "NVIDIA H100 data sheet, SXM; half of its rates with sparsity",
            ("NVIDIA H100 80GB HBM3",),
        ),
        DeviceSpec(
            "H200",
            90,
            _rates(494.7, 989.4, 1978.9),
            141,
            4800,
            "NVIDIA H200 data sheet, SXM; half of its rates with sparsity",
            ("NVIDIA H200",),
        ),
        DeviceSpec(
            "L4",
            89,
            _rates(60, 121, 242),
            24,
            300,
            "NVIDIA L4 data sheet; half of its rates with sparsity",
            ("NVIDIA L4",),
        ),
        DeviceSpec(
            "L40S",
            89,
            _rates(183, 362, 733),
            48,
            864,
            "NVIDIA L40S data sheet; half of its rates with sparsity",
            ("NVIDIA L40S",),
        ),
        DeviceSpec(
            "RTX 4090",
            89,
            _rates(82.6, 165.2, 330.3, 660.6),
            24,
            1008,
            "NVIDIA Ada architecture paper",
            ("NVIDIA GeForce RTX 4090",),
        ),
        DeviceSpec(
            "RTX 5090",
            120,
            _rates(104.8, 209.5, 419, 838),
            32,
            1792,
            "NVIDIA RTX Blackwell architecture paper",
            ("NVIDIA GeForce RTX 5090",),
        ),
        DeviceSpec(
            "RTX PRO 6000",
            120,
            _rates(251.9, 503.8, 1007.6),
            96,
            1792,
            "NVIDIA RTX PRO Blackwell architecture paper, Workstation Edition",
            ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition",),
        ),
    )
}
"""Device name -> what its maker says of it."""


def device(name: str) -> DeviceSpec:
    """The device of that name, whatever its case.

    Raises:
        UsageError: it is not in the table.
    """
    by_name = {known.lower(): spec for known, spec in DEVICES.items()}
    if name.lower() not in by_name:
        raise UsageError(
            "There is no such device in the table.",
            where="--roofline",
            expected=", ".join(DEVICES),
            found=name,
            fix=did_you_mean(name, DEVICES) or "pass one of these names",
        )
    return by_name[name.lower()]


def named_by_driver(name: str) -> DeviceSpec | None:
    """The device that a driver calls so; None where its rates are not in the table."""
    return next((spec for spec in DEVICES.values() if name in spec.driver_names), None)
