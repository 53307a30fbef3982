"""What does a person type and see? Options, tables, JSON and progress."""
