"""Who judges: origins and folds, the ledger of looks, the evidence and its seal."""
