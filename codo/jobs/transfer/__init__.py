"""The downstream job: detectors, pretrained weights into them (counted and proven), training, COCO evaluation."""

from codo.jobs.transfer.finish import TransferResult
from codo.jobs.transfer.run import resume, transfer
from codo.jobs.transfer.settings import load_transfer_config

__all__ = ["TransferResult", "load_transfer_config", "resume", "transfer"]
