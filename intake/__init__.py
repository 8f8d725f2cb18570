"""Deletion requests: the workspace on disk, the durable ledger, the promotion journal and the locks."""
