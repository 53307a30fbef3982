"""Code generation without a GPU: compile for sm_80, sm_90 and sm_100, read the listings, say what is wrong."""

from bench.inspection.codegen.build import reports
from bench.inspection.codegen.judge import KernelReport, main_table, problems

__all__ = ["KernelReport", "main_table", "problems", "reports"]
