"""The words of the generated headlines. The verb has the sentiment, the company has the topic."""

COMPANIES = {
    "banks": ("Harrow Bank", "Meridian Loans", "Saldo Bank", "Norden Insurance", "Kestrel Lending"),
    "energy": ("Polar Oil", "Gulfstream Gas", "Tellus Power", "Brightwind Renewables", "Carbon Ridge Refinery"),
    "technology": ("Quanta Software", "Ibex Chips", "Lumen Cloud", "Orbit Semiconductor", "Pixel Software"),
    "health": ("Veda Pharma", "Corvus Biotech", "St Alban Hospitals", "Mira Vaccines", "Helix Drugs"),
}

FRAMES = (
    "{company}: {noun} {verb} {time}",
    "{noun} of {company} {verb} {time}",
    "{noun} at {company} {verb} {time}",
    "{company} says its {noun} {verb} {time}",
)

NOUNS = (
    "profit", "net profit", "operating profit", "earnings", "sales", "net sales", "revenue", "margins", "orders",
    "order intake", "turnover", "cash flow", "dividend", "guidance", "market share",
)  # fmt: skip

VERBS = {
    "positive": ("rose", "grew", "improved", "jumped", "climbed", "increased", "beat estimates", "reached a record"),
    "neutral": (
        "stayed flat", "stayed unchanged", "came in as planned", "matched the forecast", "remained stable",
        "equalled the level of last year", "moved little", "met expectations",
    ),
    "negative": ("fell", "declined", "dropped", "shrank", "plunged", "worsened", "missed estimates", "hit a low"),
}  # fmt: skip

TIMES = ("in the first quarter", "in the second quarter", "in the third quarter", "in the full year", "this year", "")
