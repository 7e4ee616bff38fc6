"""Neural architecture search by Bregman iterations: tensors, groups, penalties and optimisers."""

import sys
from pathlib import Path

import lazy_loader

# In a checkout nas.models, nas.search and nas.analysis are links to folders of the repository root. A clone
# without symbolic links (or a zip download) has none: then Python looks for them in the root itself.
if __name__ == "nas" and not (Path(__file__).parent / "models").is_dir():
    __path__.append(str(Path(__file__).parents[1]))

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # torch takes two seconds to import

if "IPython" in sys.modules and (_shell := sys.modules["IPython"].get_ipython()) is not None:
    _shell.extension_manager.load_extension("nas.analysis.notebook")  # in a notebook objects show themselves
