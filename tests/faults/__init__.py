"""Runs that kill the purge with SIGKILL until it has nothing left to do."""
