"""Pure ASGI middleware, one file each. Never BaseHTTPMiddleware: it hides the client's disconnect."""
