"""Data prep: sources → validated cases → registration → ROI masks → Zarr shards."""
