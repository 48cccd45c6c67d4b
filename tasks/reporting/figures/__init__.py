"""The drawings of a report, as inline SVG."""
