"""One task each: its arguments <-> rows."""
