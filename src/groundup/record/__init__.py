"""What a run leaves behind: its ledger, its metrics, its cost and its report."""
