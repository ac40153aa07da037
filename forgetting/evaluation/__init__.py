"""Task scores (R), capability suites (G) and drift."""
