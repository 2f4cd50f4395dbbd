"""What watches a run for trouble: one failure mode, one file; each fits `training.trainer.Monitor`."""
