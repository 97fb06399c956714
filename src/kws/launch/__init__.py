"""What starts training processes and waits for them: torchrun here, a PyTorchJob on a cluster.

In: a TrainJob. Out: success, or a LaunchError with the job's own message.
Start with job.py, the protocol; launch.py chooses the launcher.
"""
