"""Pretraining: config -> parts -> loop -> run folder."""

from codo.jobs.pretrain.run import PretrainResult, dry_run, pretrain, resume

__all__ = ["PretrainResult", "dry_run", "pretrain", "resume"]
