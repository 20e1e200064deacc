"""From Parquet to records: packed tokens, mixtures, models, pre-training runs.

Only `train.job` and `train.lanes.job` import ray; torch, deepspeed and transformers are imported only where they run.
"""
