"""What starts training processes and waits for them: torchrun here, a PyTorchJob on a cluster.

In: a Training. Out: success, or a LaunchError with the job's own message.
Start with job.py, the protocol, then launch.py, which chooses the launcher: torchrun.py here, cluster.py on a cluster.
"""
