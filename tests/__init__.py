"""Everything that tests hpc-launch.

Python keeps what it has compiled here, whatever the environment says. Where PYTHONDONTWRITEBYTECODE is set, as in many
containers, each of some thousand processes would compile hpc-launch anew. An installed package is compiled already.
"""

import os
import sys

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
