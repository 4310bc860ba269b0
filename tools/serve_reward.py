"""Serves a reward model for reward.name=http: python tools/serve_reward.py model.path=FOLDER [port=8010]

--help: all options, with their defaults. The address it prints is what reward.http.url takes.
"""

from __future__ import annotations

import sys

from areal_mega.config.checks import check, resolve_device
from areal_mega.config.command_line import parse
from areal_mega.config.errors import UserError


def main() -> int:
    try:
        run(sys.argv[1:])
    except UserError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def run(arguments: list[str]) -> None:
    options = parse("serve_reward", arguments)

    import torch

    cuda = torch.cuda.is_available()
    check(options, 1, cuda)

    from areal_mega.rewards.served_model import serve

    serve(options, resolve_device(options.runtime.device, cuda))


if __name__ == "__main__":
    sys.exit(main())
