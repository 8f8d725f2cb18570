"""One module per pipeline step: a Prefect task around one function of the rooms below.

Tasks hand on small frozen values (`contracts.values`) and paths inside the run folder, never
tensors, images or captions; nothing is persisted and nothing is cached by Prefect.
"""
