"""The link between the host's memory and the device's: plain copies, and pages of a KV cache sent out and back."""
