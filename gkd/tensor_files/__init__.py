"""Readers and writers of tensor file formats: safetensors, msgpack and zarr.

In: paths of files that may be damaged or hostile. Out: `Tensor`s whose values are read when they
are needed, or a one-line error. Pickles are opened by PyTorch alone.
"""
