"""What is this part? Published numbers with their sources, and how a part is found."""

from __future__ import annotations

from bench.devices.lookup import MMA_FLOP_PER_SM_CLOCK, derive, find, identify
from bench.devices.spec import DeviceSpec, Quantity
from bench.devices.table import DEVICES

__all__ = ["DEVICES", "MMA_FLOP_PER_SM_CLOCK", "DeviceSpec", "Quantity", "derive", "find", "identify"]
