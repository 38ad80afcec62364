"""Starts the processes of one training, on this host or on others, and ends them together."""
