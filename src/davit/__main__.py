"""`python -m davit` is the `davit` command."""

import sys

from davit.cli import main

sys.exit(main())
