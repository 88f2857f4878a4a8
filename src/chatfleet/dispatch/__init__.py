"""From a model name to a worker: the view of the fleet, the choice, the connection. Imports http, core."""
