"""A Kubeflow made on this machine, with kind.

In: Docker and this revision. Out: images, a cluster with Kubeflow in it, its volume.
Start with cluster.py; preflight.py checks what the machine needs.
"""
