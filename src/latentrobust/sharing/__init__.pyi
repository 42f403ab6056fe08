"""What ``import latentrobust.sharing`` gives; read at run time too (see ``__init__.py``)."""

from .card import write_shareable as write_shareable
from .claims import Claims as Claims
from .claims import benchmark_model as benchmark_model
from .exporting import export as export
from .hub import push_run as push_run
