"""From Parquet to records: packed tokens, mixtures, models, pre-training runs.

Only `train.job` imports ray; torch, deepspeed and transformers are imported only where they run.
"""
