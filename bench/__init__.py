"""How do we measure, predict and judge? Operations are known only through `kernels.op`."""

__version__ = "0.1.0"
