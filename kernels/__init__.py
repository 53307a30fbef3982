"""What is measured: one folder per operation. Nothing here knows of timing, files or screens."""
