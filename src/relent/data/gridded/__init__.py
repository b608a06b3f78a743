"""Gridded fields from any store or file, laid out as tiles: ERA5 zarr, anemoi-datasets, netCDF, GRIB."""
