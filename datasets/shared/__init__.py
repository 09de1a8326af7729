"""What several kinds of dataset share: the contract, options, splits, targets, vocabularies, series."""
