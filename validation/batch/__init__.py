"""A batch as a whole: its totals, its drift, and what is expected of it."""
