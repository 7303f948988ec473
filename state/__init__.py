"""Domain types, SQL schema, store, action ledger, leases and decision log."""
