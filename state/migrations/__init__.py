"""Schema revisions, run by `Database.upgrade()`; LangGraph's tables in the same database are not ours."""
