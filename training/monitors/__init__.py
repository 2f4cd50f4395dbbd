"""What watches a run for trouble: one failure mode, one file; each fits `training.trainer.Monitor`."""

from training.monitors.blow_up import BlowUp
from training.monitors.collapse import Collapse
from training.monitors.imbalance import Imbalance
from training.monitors.non_convergence import NonConvergence
from training.monitors.vanishing_gradient import VanishingGradient


def watchers() -> list[BlowUp | Collapse | Imbalance | NonConvergence | VanishingGradient]:
    """All of them, as a run of a family that draws from latents has them."""
    return [BlowUp(), Collapse(), Imbalance(), NonConvergence(), VanishingGradient()]
