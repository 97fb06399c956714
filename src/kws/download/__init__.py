"""The first step: recordings onto the volume.

In: an address, an archive or a folder. Out: datasets/<name>-<sha256>/, word folders and a manifest.
Start with step.py; synthesize.py speaks a corpus where there is none.
"""
