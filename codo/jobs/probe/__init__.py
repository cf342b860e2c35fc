"""Label-free probes: what a frozen encoder's embeddings are worth, measured on images it was not trained on.

`images` draws them, `bench` composes them, `features` embeds them, `measure` has the figures; these know no config, so
that pretraining can probe itself. `run` is the job.
"""
