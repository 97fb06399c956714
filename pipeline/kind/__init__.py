"""A Kubeflow on this machine, created with kind.

In: Docker and this revision. Out: images, a cluster with Kubeflow in it, its volume.
Start with local_cluster.py; preflight.py checks what the machine needs.
"""
