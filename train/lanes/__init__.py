"""Lanes: warm worker groups that train a common queue of runs.

queue         who gets which run, and what a dead worker means; pure bookkeeping
queue_actor   the queue as something many can wait on
worker        one worker of a lane: it trains what it is told, and agrees with its peers how each run ended
job           the Ray side: the actor, the worker groups, and what holds them up
"""
