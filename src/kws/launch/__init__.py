"""The launchers, which start training processes and wait for them: torchrun here, a PyTorchJob on a cluster.

In: a Training. Out: success, or a LaunchError with the job's own message.
Start with job.py, the protocol, then choose.py, which chooses the launcher: torchrun.py here, submit.py on a cluster.
"""
