"""What every long job shares: files, run folder, checkpoints, devices, console."""
