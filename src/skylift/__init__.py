"""skylift: moves companies' databases to the cloud and proves that every row arrived."""
