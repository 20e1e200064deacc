"""Scaling laws: forms, objectives, exact fits, honest intervals. The arithmetic is numpy and scipy only.

Fit a table (a mapping of columns or a pandas DataFrame):

    from tune.laws import fit
    fitted = fit("chinchilla", rows, objective="huber_log")   # rows: num_params, train_tokens, loss[, run_id]
    print(fitted)                                             # parameters, intervals, hold-out error, warnings
    fitted.record                                             # tune.results.LawFit, the JSON record
    fitted.plot().savefig("fit.png")                          # curve or predicted against measured, residuals
    fitted.save("fit.json"); load("fit.json")                 # record, resamples and rows in one file
    print(compute_optimal(fitted, [1e21, 1e22]))              # N*, D* and the loss for a compute budget
    print(fit("auto", rows).record.selection)                 # laws compared by how they extrapolate
    print(isoflop(num_params, compute_flops, loss))           # N* ~ C^a without a law
    print(explain("chinchilla"))                              # formula, symbols, units, paper

Use what `fit_laws` wrote:

    from tune.laws import load_fit
    laws = load_fit(root, "laws")                             # iterates over FittedLaw; .file is the FitFile
    laws.groups                                               # ("natural", "hq 33 %", ...)
    fitted = laws.find("chinchilla", "hq 33 %")               # FittedLaw or None; also "data", "model"
    fitted.predict(num_params=1e6, train_tokens=1e8)          # tune.results.Interval, nats per token
    fitted.tokens_to_reach(3.2, num_params=1e6)               # Interval in tokens, or None: never reached
    fitted.extrapolation(num_params=1e9, train_tokens=1e8)    # 1 inside the data, 10 = ten times beyond it
    fitted.interval_of(lambda p: p["beta"] / (p["alpha"] + p["beta"]))
    fitted.curve({"train_tokens": array})                     # losses, low, high: arrays for a plot
    fitted.parameters, fitted.record.warnings, fitted.record.hold_out, fitted.record.ranges

A one-axis law answers on its own axis: `data` needs only train_tokens (N is held at `record.fixed`), `model` only
num_params. Intervals are of the curve, not of a single run. Resamples of different groups are independent, so
combining `fitted.samples` of two groups row by row gives resamples of any contrast between them.
"""

from tune.laws.bootstrap import Noise
from tune.laws.fitted import FittedLaw
from tune.laws.forms import CHINCHILLA, CHINCHILLA_TIED, DATA, MODEL
from tune.laws.frontier import compute_optimal
from tune.laws.isoflop import Isoflop, isoflop
from tune.laws.law import Law, Parameter
from tune.laws.objectives import OBJECTIVES, Objective
from tune.laws.registry import LAW_NAMES, LAWS, explain, law_named
from tune.laws.saved import SavedLaws, load_directory, load_fit
from tune.laws.summary import describe, tabulate
from tune.laws.table import fit, load

__all__ = [
    "CHINCHILLA",
    "CHINCHILLA_TIED",
    "DATA",
    "LAWS",
    "LAW_NAMES",
    "MODEL",
    "OBJECTIVES",
    "FittedLaw",
    "Isoflop",
    "Law",
    "Noise",
    "Objective",
    "Parameter",
    "SavedLaws",
    "compute_optimal",
    "describe",
    "explain",
    "fit",
    "isoflop",
    "law_named",
    "load",
    "load_directory",
    "load_fit",
    "tabulate",
]
