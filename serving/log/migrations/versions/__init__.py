"""One module per revision. The previous release must run on the new schema: expand first."""
