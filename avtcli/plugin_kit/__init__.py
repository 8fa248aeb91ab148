"""For authors of plugins: conformance checks, and a package to start from."""
