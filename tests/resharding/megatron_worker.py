"""Prints, as JSON, what Megatron's own model has on every rank of every job."""

import json
import sys

from areal_mega.runtime import cpu

if __name__ == "__main__":
    cpu.enable()  # before anything imports megatron
    from resharding.megatron_models import ranks

    print("RESULT" + json.dumps([ranks(*job) for job in json.loads(sys.argv[1])]))
