"""Where gateways lease rights to spend: one vault for all of them, SQLite on one machine, Redis or Valkey on many."""
