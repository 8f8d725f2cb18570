"""Plain value types that every room may import: standard library only, no I/O.

One deletion request travels from door to door as these frozen values
(`DeletionRequest` -> `Plan` -> `ModelHandle` -> ... -> `Certificate`).  They hold
opaque ids, digests, counts and figures, never tensors, images, captions or names, so a
Prefect result store, an MLflow tag or a certificate can carry any of them.
"""
