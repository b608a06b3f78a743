"""Data sources: one module each, with `prepare` (writes a zarr data set) and the classes that read it."""
