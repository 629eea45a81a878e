"""The same as `holdfast gameday`, from a source tree."""

from loadtests.gameday.commands import main

main()
