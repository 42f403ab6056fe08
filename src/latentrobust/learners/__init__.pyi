"""What ``import latentrobust.learners`` gives; read at run time too (see ``__init__.py``)."""

from .cvae import CVAELearner as CVAELearner
from .flow import FlowLearner as FlowLearner
from .vae_gan import VAEGANLearner as VAEGANLearner
