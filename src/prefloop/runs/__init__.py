"""What the stages of one process share: the model, the sampler, the event log; and results opened
again.
"""
