"""What is measured? One folder for each operation. Nothing here knows about timing, files or screens."""
