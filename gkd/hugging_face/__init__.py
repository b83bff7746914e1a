"""The families of transformers: config.json and tensor names, translated to gkd's and back.

In: the JSON and the unread tensors of a folder, or an architecture. Out: the architecture, and the
names and orientation of its tensors; every misfit is a one-line error.
"""
