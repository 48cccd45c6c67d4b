"""The outside world: settings, object store, registry, files, processes, scoring runtime."""
