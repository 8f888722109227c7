"""A pair of controllers: each one follows the state of the other one's redirector over ssh."""
