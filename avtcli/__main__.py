"""`python -m avtcli` is the same as `avt`."""

from avtcli.cli.app import main

main()
