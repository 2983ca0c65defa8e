"""python -m minattn"""
import sys

from minattn.cli import main

sys.exit(main())
