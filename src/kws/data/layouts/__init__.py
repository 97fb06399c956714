"""How recordings are laid out: each layout finds the clips of a folder, with the speakers and splits that it states.

Most are tables of rows (rows.py) that stand in different places: in files (tables.py, which reads them by cells.py,
columns.py and finding.py), in the names of folders (folders.py), or in what other tools write (toolkits.py). tree.py
lists what is in a folder. `kws.data.sources` has them in the order in which they are tried.
"""
