"""One module per revision, forward only: an earlier release is reached by restoring a backup."""
