"""What does the compiler make of our kernels? Compiled without a GPU; its listings are read and judged."""

from bench.inspection.codegen.build import reports
from bench.inspection.codegen.judge import KernelReport, main_table, problems

__all__ = ["KernelReport", "main_table", "problems", "reports"]
