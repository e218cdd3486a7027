"""Matrices on a device to spectra, one decomposition per file: where the linear algebra is."""
