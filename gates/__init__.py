"""Measurements -> intervals -> verdict.

`outcomes` checks the item-level table, `metrics` turns it into `Measurements` with the bounds of
`intervals`, `suite` reads the gate file a user may edit, `runner` decides it with Great Expectations
(imported only there and in `data_docs`: it costs seconds) and `verdict` folds the gates into one
decision.  Every path fails closed: what cannot be decided is "insufficient evidence".
"""
