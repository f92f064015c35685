"""Serve: the Ray Serve application, HTTP schemas and client."""
