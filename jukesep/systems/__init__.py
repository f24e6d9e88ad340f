"""Systems: whatever separates a mixture into stems, ours and others'."""
