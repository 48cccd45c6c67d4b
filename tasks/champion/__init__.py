"""The champion: its history, approvals, and the check before a promotion."""
