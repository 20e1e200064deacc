"""From records to answers: laws, the search of the share, the recommendation, the report.

Only `tune.job` imports ray; `tune.laws` is numpy and scipy only.
"""
