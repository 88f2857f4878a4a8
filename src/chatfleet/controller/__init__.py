"""The live registry of workers and models; never on a request's path. Imports http, core."""
