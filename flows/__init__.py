"""The order of the stages, on which workers they run, and the command line."""
