"""The kernels, written with the IR builder; each is described by a frozen specification."""
