"""Platform: cluster session, Ray Train runs, run and model registry, the clinfuse command."""
