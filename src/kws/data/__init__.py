"""What all steps know of the data: the clip, where clips come from, their splits and classes, and their index.

Start with clip.py. A layout of files is a function that finds the clips of a folder (folder.py, named in sources.py).
splits.py divides them, classes.py adds unknown words and silence, index.py stores them in columns.
"""
