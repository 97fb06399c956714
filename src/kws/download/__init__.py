"""The first step: copies recordings to the volume.

In: a URL, an archive or a folder. Out: datasets/<name>-<sha256>/ with a folder for every word and a manifest.
Start with step.py; synthesize.py makes a synthetic corpus if there are no recordings.
"""
