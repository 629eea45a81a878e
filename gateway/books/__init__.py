"""What must last: the ledger of budgets, the journal of facts, the keys."""
