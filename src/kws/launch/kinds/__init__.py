"""The kinds of training jobs that a cluster may run, as data: how a manifest is built, and what its pods are called.

In: a Training and the settings of its pods. Out: a manifest. Start with job_kind.py; pod.py has what all kinds share.
"""
