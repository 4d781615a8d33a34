"""Which colour means what? One table for every widget, chosen to be told apart on dark terminals.

Load runs from dark blue over green to yellow (readable without red and green); ranks and memory
parts have colours of their own, ordered so that neighbours differ.
"""

MEANINGS = {
    "": "#d7dae0",
    "strong": "bold #ffffff",
    "good": "#7bd88f",
    "busy": "#f2c14e",
    "bad": "bold #ff6b6b",
    "dim": "#7d8796",
}
GROUND, INK_DARK, INK_LIGHT = "#14171d", "#14171d", "#aab4c3"
LOAD = ("#20242c", "#26426b", "#2b5f8a", "#2d7d91", "#3a9a85", "#6db36a", "#b7c651", "#fde74c")
RANKS = (
    "#4f9dde", "#f2a65a", "#7bd88f", "#c792ea", "#ef6f8e", "#5ec8c2", "#e3d26f", "#9aa5b8",
)  # fmt: skip
PARTS = {
    "experts": "#4f9dde",
    "shared": "#c792ea",
    "kv": "#7bd88f",
    "adapters": "#f2a65a",
    "reserved": "#f2c14e",
    "free": "#2a2f3a",
    "other": "#9aa5b8",
}


def rank_colour(rank: int) -> str:
    """The colour of a rank; they repeat beyond the table."""
    return RANKS[rank % len(RANKS)]
