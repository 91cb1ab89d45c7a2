"""The `segnode` command."""
