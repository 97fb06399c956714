"""An existing Kubeflow: runs, schedules, models.

In: the flags of a command. Out: calls to Kubeflow Pipelines and Kubernetes.
Start with commands.py; connect.py says which cluster.
"""
