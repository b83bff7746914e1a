"""The verb `report`: one page of figures, tables and samples from run directories.

In: run directories, sweeps, or folders that hold them; runs may still be going. Out: one HTML page
without scripts that opens from disk, and its figures as PNG and PDF. No run is changed.
"""
