"""What the link between ranks gives: each rank copies what the next one holds."""
