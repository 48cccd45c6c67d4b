"""The object store behind one URI, and every key that the project writes."""
