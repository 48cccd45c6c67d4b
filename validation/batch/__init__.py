"""A batch as a whole: its totals, its drift, and its checks."""
