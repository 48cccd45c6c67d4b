"""Cells as facts and as arrays: measured, packed and scored."""
