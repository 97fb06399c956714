"""Kubernetes: its API, what its errors mean, the logs of pods, and why pods wait and end.

In: a kubeconfig, or the pod in which this runs. Out: dictionaries, as the API gives them, or a KubeError.
Start with client.py; nothing else in the project but the kinds of training jobs imports the library.
"""
