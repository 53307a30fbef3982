"""The link between the host's memory and the device's: what do copies and swapped KV pages cost?"""
