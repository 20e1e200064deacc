"""One file = one job: the only place that reads argv, configuration files and the environment, or starts Ray.

In the order of the flow: build_corpus, train_generator, rephrase_corpus, pack_tokens, pretrain_models,
search_mixture, fit_laws, recommend_mixture, write_report; run_study runs them all from one file.
"""
