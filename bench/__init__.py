"""How it is measured, predicted and judged. Operations are known only through `kernels.op`."""

__version__ = "0.1.0"
