"""The SDRs, whole songs scored, and the published numbers beside them."""
