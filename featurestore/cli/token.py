"""Make a bearer token for a client of `serve`.

The entry for the file of tokens, which holds only a digest, goes to stdout; the token itself to stderr, so that
`featurestore token NAME >> tokens.toml` never writes it there.
"""

from __future__ import annotations

import argparse
import sys

from featurestore.cli.output import print_json
from featurestore.cli.repository import Context


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `token`."""
    parser.add_argument("name", metavar="NAME", help="the principal: the table [token.NAME] in the file of grants")
    parser.add_argument("--roles", default="", metavar="ROLE,...", help="its roles: tables [role.ROLE] of grants")


def run(args: argparse.Namespace, context: Context) -> int:
    """0; nothing is kept: the token cannot be shown again."""
    from serving.access.tokens import new_token, token_entry

    token = new_token()
    entry = token_entry(args.name, token, [role for role in args.roles.split(",") if role])
    if context.json:
        print_json({"token": token, "entry": entry})
    else:
        print(entry, end="")
        print(f"the token of {args.name}, shown only now:\n{token}", file=sys.stderr)
    return 0
