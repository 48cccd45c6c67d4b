"""How cells get into the store: imports, downloads, synthetic cells."""
