"""Serves exported generators over HTTP. Imports neither torch nor `training`."""

import os

__version__ = "0.1.0"

# ONNX Runtime 1.29 and newer report usage to its maker unless told otherwise before it is loaded. Whoever sets the
# variable to 0 has asked for that.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
