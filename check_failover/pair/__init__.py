"""Two controllers, one mind: each follows the state of the other's redirector, over ssh."""
