"""The same pieces on a Ray cluster; the only importer of ray."""
