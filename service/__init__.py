"""Serves exported generators over HTTP. Imports neither torch nor `training`."""

__version__ = "0.1.0"
