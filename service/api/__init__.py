"""The HTTP side: routes, schemas, problems and middleware around the engine."""
