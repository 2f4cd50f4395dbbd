"""Trains generators on images, proves them on held-out ones and exports them to ONNX. Offline: needs torch."""
