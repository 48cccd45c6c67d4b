"""Who judges: sides of the split, holdout generations and the ledger of looks."""
