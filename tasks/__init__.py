"""The stages of a night, one module each: a plain function from record to record."""
