"""The kernels, written in the small vector language of ``lang``."""
