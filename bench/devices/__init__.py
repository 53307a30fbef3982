"""What is this part? Published numbers with their sources, and how a part is found."""

from __future__ import annotations

from bench.devices.lookup import DEVICES, bytes_in_flight_needed, derive, find, identify
from bench.devices.occupancy import CAPABILITIES, Capability, issue_rate
from bench.devices.spec import DeviceSpec, Quantity

__all__ = [
    "CAPABILITIES",
    "DEVICES",
    "Capability",
    "DeviceSpec",
    "Quantity",
    "bytes_in_flight_needed",
    "derive",
    "find",
    "identify",
    "issue_rate",
]
