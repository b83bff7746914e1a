"""Device meshes, the placement of arrays on them, and the processes of a job.

In: devices, logical axis names, the environment variables of a job. Out: meshes, shardings, and
each process's own rows. No module here imports models or opens files.
"""
