"""One file = one job: the only place that reads argv, configuration files and the environment, or starts Ray.

In the order of the flow: build_corpus, train_generator, rephrase_corpus, pack_tokens, pretrain_models,
search_mixture, fit_laws, recommend_mixture, write_report; run_study runs them all from one file.
"""

import os

# Matrix products summed by several threads differ in the last bit with their number, and then so do the draws behind
# intervals: a study must give the same numbers on a laptop and in a submitted job. Read when numpy is first imported.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
