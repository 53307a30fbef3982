"""The routed experts of a decode step: what does it cost to read only the experts that are hit?"""
