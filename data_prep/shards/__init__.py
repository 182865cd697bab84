"""Which tar holds what, writing it, and the tables beside the tars."""
