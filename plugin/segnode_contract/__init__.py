"""What plugin, worker, model process and command line agree on."""

__version__ = "0.1.0"
