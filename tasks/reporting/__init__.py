"""The promotion report: from records to one self-contained HTML page."""
