"""Python imports this at its start wherever it is on the path: the blocking-call detector, in every process below."""

from blockbuster import BlockBuster

BlockBuster().activate()
