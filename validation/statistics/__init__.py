"""Metrics, intervals and tests, with the patient as the unit."""
