"""Files on this machine: atomic writes, locks, caches and temporary folders."""
