"""All words about a verdict, from the records alone: what a decision is stored with, and the text of its report."""
