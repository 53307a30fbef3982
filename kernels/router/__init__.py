"""Routing: which experts a token takes, and with which weights."""
