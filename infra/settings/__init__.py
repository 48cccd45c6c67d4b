"""All settings: read from the environment, a TOML file and defaults, checked once."""
