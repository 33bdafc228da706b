"""What each configuration sustains: sweeps of load and of the workers' split."""
