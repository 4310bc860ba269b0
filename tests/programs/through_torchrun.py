"""A training run as the tools start it, so that Ctrl-C reaches a Python process above torchrun as well."""

import sys

from areal_mega.runtime.torchrun import torchrun

if __name__ == "__main__":
    sys.exit(torchrun("areal_mega.tools.train_ppo", *sys.argv[1:]))
