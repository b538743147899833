"""What the stages of one process share: model, sampler and event log. Also loads finished
results.
"""
