"""From files to records, from records to token ids, from token ids to packs."""
