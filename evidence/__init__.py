"""Manifests, certificates, and the verifier that needs nothing but Python.

`manifest` ties a model folder to one digest, `certificate` writes what a run showed, `verify` checks it
offline: it re-derives every bound, gate and decision from the stored counts instead of believing them.
This room imports the standard library and `contracts` only, so an auditor can run the two folders
alone; a test does.
"""
