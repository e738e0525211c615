"""Parity: proof that an engine computes what PyTorch computes, boundary by boundary, as numbers and as a page.

report = parity.check(reference, candidate, parity.samples.held_out(200), parity.CheckOptions("fp32"))
parity.write_report(report, bundle / "report")
report.raise_if_failed()
"""

from r1v_export.parity import samples
from r1v_export.parity.comparison import check
from r1v_export.parity.endpoints import Endpoint
from r1v_export.parity.options import CheckOptions
from r1v_export.parity.report import write_report
from r1v_export.parity.samples import ParitySample
from r1v_export.parity.schema import ParityReport

__all__ = ["CheckOptions", "Endpoint", "ParityReport", "ParitySample", "check", "samples", "write_report"]
