"""What runs, and when: one Prefect flow per workflow, without numerics and without registry calls."""
