"""The cell images of a report."""
