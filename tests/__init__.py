"""The tests mirror the wings; fakes, planted cheats and made-up records are in `tests/support/`."""
